"""Checks whether a run can work on this machine, and suggests a fix for each problem. Needs no network."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import psutil
import torch
import torch.distributed as dist

from ddp_workbook.devices import available_cores, choose_backend, choose_device, choose_precision
from ddp_workbook.distributed.process_group import LOOPBACK
from ddp_workbook.distributed.ranks import run_on_ranks
from ddp_workbook.distributed.rendezvous import ADDRESS
from ddp_workbook.errors import InputError
from ddp_workbook.specs import DATASETS
from ddp_workbook.training.datasets import DAMAGE_CHECKS

GIB = 2**30
LEAST_MEMORY, GOOD_MEMORY = 1 * GIB, 4 * GIB  # two processes with a ResNet-50 take 3 GiB
LEAST_DISK, GOOD_DISK = 1 * GIB, 3 * GIB  # a checkpoint of a ResNet-50 takes 0.2 GiB, CIFAR-10 with its archive 0.4
LOOKUP_SECONDS = 3


@dataclass(frozen=True)
class Finding:
    """Result of one check. A run works in spite of a warning, but not with a fault."""

    name: str
    state: Literal["ok", "warning", "fault"]
    what: str
    fix: str = ""


def _judge(name: str, what: str, *, warning: str = "", fault: str = "") -> Finding:
    """The finding; a fault or warning that is not empty is the text of its fix."""
    if fault:
        return Finding(name, "fault", what, fault)
    return Finding(name, "warning", what, warning) if warning else Finding(name, "ok", what)


def check_cores() -> Finding:
    """Cores that this process may use, of those that the machine has."""
    usable, present = available_cores(), os.cpu_count() or 1
    alone = "only one core: two processes take turns, and DDP cannot be faster here" if usable == 1 else ""
    return _judge("cores", f"{usable} of {present} usable", warning=alone)


def check_threads() -> Finding:
    """OMP_NUM_THREADS overrides the workbook's own choice of threads in notebooks."""
    name = "OMP_NUM_THREADS"
    text = os.environ.get(name)
    if text is None:
        return _judge("threads", f"torch uses {torch.get_num_threads()}; a run splits the cores among its processes")
    odd = not text.isdigit() or not 1 <= int(text) <= available_cores()
    return _judge("threads", f"{name}={text}", warning=f"unset {name}" if odd else "")


def check_memory() -> Finding:
    """Memory that is free now."""
    free = psutil.virtual_memory().available
    advice = "close other programs, or take the recipe mlp-digits, which needs 0.5 GiB in each process"
    return _judge(
        "memory",
        f"{free / GIB:.1f} GiB free",
        fault=advice if free < LEAST_MEMORY else "",
        warning=advice if free < GOOD_MEMORY else "",
    )


def check_disk(folders: Iterable[Path]) -> Finding:
    """The smallest free space of all folders that a run writes into."""
    free, where = min((shutil.disk_usage(_existing(folder)).free, str(folder)) for folder in folders)
    advice = f"free some space for {where}, or choose another folder (--results-dir, --checkpoint-dir, --data-dir)"
    return _judge(
        "disk",
        f"{free / GIB:.1f} GiB free",
        fault=advice if free < LEAST_DISK else "",
        warning=advice if free < GOOD_DISK else "",
    )


def check_ports() -> Finding:
    """Whether a program can listen on loopback, and be connected to."""
    try:
        with socket.create_server((ADDRESS, 0)) as server:
            socket.create_connection(server.getsockname(), timeout=LOOKUP_SECONDS).close()
    except OSError as error:
        advice = f"allow Python to open ports on {ADDRESS}: a firewall, a proxy or a sandbox blocks it"
        return _judge("ports", f"no connection to {ADDRESS} ({error})", fault=advice)
    return _judge("ports", f"{ADDRESS} answers")


def check_loopback() -> Finding:
    """Whether the loopback interface, which Gloo is told to use by name, is up."""
    name = LOOPBACK.get(sys.platform)
    if name is None:
        return _judge("loopback interface", "not asked for by name on this system")
    families = (socket.AF_INET, socket.AF_INET6)
    addresses = [each.address for each in psutil.net_if_addrs().get(name, []) if each.family in families]
    up = name in psutil.net_if_stats() and psutil.net_if_stats()[name].isup
    advice = f"bring it up, as root: ip link set {name} up" if sys.platform == "linux" else f"bring {name} up"
    what = f"{name} {'is up' if up else 'is down'} with {', '.join(addresses) or 'no address'}"
    return _judge("loopback interface", what, fault="" if up and ADDRESS in addresses else advice)


def check_host_name() -> Finding:
    """Whether this machine's name has an address; only runs on several machines need it."""
    name = socket.gethostname()
    answers: list[str | Exception] = []

    def look_up() -> None:
        try:
            answers.append(socket.gethostbyname(name))
        except (OSError, UnicodeError) as error:
            answers.append(error)

    thread = threading.Thread(target=look_up, daemon=True)  # a lookup without an answer must not delay the exit
    thread.start()
    thread.join(LOOKUP_SECONDS)
    answer = answers[0] if answers else OSError(f"no answer in {LOOKUP_SECONDS} s")
    fails = isinstance(answer, Exception)
    what = f"{name} is not found ({answer})" if fails else f"{name} is {answer}"
    advice = "one machine does not need it; for several, give every torchrun its own --local-addr (launch/README.md)"
    return _judge("host name", what, warning=advice if fails else "")


def check_versions() -> Finding:
    """torchvision's compiled part works only with the version of torch that it requires."""
    try:
        what = f"torch {version('torch')}, torchvision {version('torchvision')}"
        pins = [line for line in requires("torchvision") or () if "torch==" in line]
        needs = [pin.split("==")[1].split(";")[0].strip() for pin in pins]
    except PackageNotFoundError as error:
        return _judge("torch and torchvision", str(error), fault='install both: pip install -e ".[dev]"')
    if needs and version("torch").split("+")[0] != needs[0].split("+")[0]:
        advice = f"install torch {needs[0]}, or both again: pip install --upgrade torch torchvision"
        return _judge("torch and torchvision", f"{what}, which needs torch {needs[0]}", fault=advice)
    try:
        from torchvision.ops import nms

        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except Exception as error:  # whatever a mismatch of compiled parts does
        advice = "install both from the same index: pip install --upgrade torch torchvision"
        return _judge("torch and torchvision", f"{what} do not match ({_first_line(error)})", fault=advice)
    return _judge("torch and torchvision", what)


def check_backends() -> Finding:
    """Backend, device and precision that a run would choose."""
    device = choose_device("auto")
    what = f"{choose_backend('auto', choose_device('auto', processes=2))} on {device.type}, "
    what += choose_precision("auto", device)
    advice = "install a torch that was built with Gloo, such as the one of pip install torch"
    return _judge("backend", what, fault="" if dist.is_gloo_available() else advice)


ALL_REDUCE = """
import datetime, torch, torch.distributed as dist
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=15))
value = torch.tensor([dist.get_rank() + 1])
dist.all_reduce(value)
print("sum", value.item())
dist.destroy_process_group()
"""


def check_all_reduce() -> Finding:
    """Two real processes add 1 and 2 by an all-reduce."""
    lines: list[str] = []
    try:
        run_on_ranks(ALL_REDUCE, 2, lines.append)
    except InputError as error:
        return _judge("all-reduce", "cannot start two processes", fault=str(error))
    except RuntimeError as error:
        lines.append(f"error: {_first_line(error)}")
    advice = "fix the faults above first; if there are none, try without VPN and firewall"
    printed = [line.strip() for line in lines if line.strip()] or ["the processes printed nothing"]
    works = lines.count("sum 3") == 2
    return _judge(
        "all-reduce", "2 processes added 1 and 2" if works else printed[-1][:200], fault="" if works else advice
    )


def check_dataset(name: str, data_dir: Path) -> Finding:
    """Whether a data set that was downloaded is complete."""
    title, folder = DATASETS[name].title, data_dir / DATASETS[name].folder
    if not folder.exists():
        return _judge(title, f"not in {data_dir} yet: a recipe that needs it downloads it once")
    bad = DAMAGE_CHECKS[name](data_dir)
    advice = f"move {folder} away and start the recipe again, which downloads it"
    return _judge(title, f"damaged: {', '.join(bad)}" if bad else "complete", fault=advice if bad else "")


def check_folders(folders: Iterable[Path]) -> Finding:
    """Whether files can be written into each folder, or into the one that it will be created in."""
    for folder in folders:
        try:
            with tempfile.TemporaryFile(dir=_existing(folder)):
                pass
        except OSError as error:
            advice = f"make {folder} writable, or choose another (--results-dir, --checkpoint-dir, --data-dir)"
            return _judge("folders", f"cannot write into {folder} ({error.strerror})", fault=advice)
    return _judge("folders", f"{', '.join(map(str, folders))} can be written")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def examine(
    data_dir: Path = Path("data"), results_dir: Path = Path("results"), checkpoint_dir: Path = Path("checkpoints")
) -> list[Finding]:
    """All findings, in an order in which an earlier fault can explain a later one."""
    folders = (results_dir, checkpoint_dir, data_dir)
    checks: dict[str, Callable[[], Finding]] = {
        "cores": check_cores,
        "threads": check_threads,
        "memory": check_memory,
        "disk": lambda: check_disk(folders),
        "folders": lambda: check_folders(folders),
        "torch and torchvision": check_versions,
        "backend": check_backends,
        "loopback interface": check_loopback,
        "ports": check_ports,
        "host name": check_host_name,
        **{DATASETS[name].title: partial(check_dataset, name, data_dir) for name in DAMAGE_CHECKS},
    }
    with ThreadPoolExecutor(1) as pool:
        all_reduce = pool.submit(_examined, "all-reduce", check_all_reduce)  # it mostly waits: run it beside the others
        return [*(_examined(name, check) for name, check in checks.items()), all_reduce.result()]


def _examined(name: str, check: Callable[[], Finding]) -> Finding:
    """The check's finding; a check that fails itself is a fault."""
    try:
        return check()
    except Exception as error:
        advice = "this should not happen: please report it with the whole line"
        return Finding(name, "fault", f"cannot be examined ({type(error).__name__}: {_first_line(error)})", advice)


def describe(findings: Iterable[Finding]) -> str:
    """A line for each finding, with the fix below it."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<8} {finding.name}: {finding.what}")
        lines += [f"{'':<8} -> {finding.fix}"] if finding.fix else []
    return "\n".join(lines)
