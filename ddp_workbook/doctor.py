"""What stands in the way of a run on this machine: each thing examined, and what mends it. Needs no network."""

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
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import psutil
import torch
import torch.distributed as dist

from ddp_workbook.config import IMAGES
from ddp_workbook.devices import available_cores, choose_backend, choose_device, choose_precision
from ddp_workbook.distributed import LOOPBACK
from ddp_workbook.ranks import run_on_ranks
from ddp_workbook.rendezvous import ADDRESS

GIB = 2**30
LEAST_MEMORY, GOOD_MEMORY = 1 * GIB, 4 * GIB  # two processes with a ResNet-50 take 3 GiB
LEAST_DISK, GOOD_DISK = 1 * GIB, 3 * GIB  # a checkpoint of a ResNet-50 takes 0.2 GiB, CIFAR-10 with its archive 0.4
LOOKUP_SECONDS = 3


@dataclass(frozen=True)
class Finding:
    """One thing examined. A warning lets a run go on; a fault does not."""

    name: str
    state: Literal["ok", "warning", "fault"]
    what: str
    mend: str = ""


def _judge(name: str, what: str, *, warning: str = "", fault: str = "") -> Finding:
    """The finding with the first of fault and warning that is not empty; each is its own mend."""
    if fault:
        return Finding(name, "fault", what, fault)
    return Finding(name, "warning", what, warning) if warning else Finding(name, "ok", what)


def check_cores() -> Finding:
    """Cores that this process may use, of those that the machine has."""
    usable, present = available_cores(), os.cpu_count() or 1
    alone = "one core: two processes will take turns, and DDP cannot be faster here" if usable == 1 else ""
    return _judge("cores", f"{usable} of {present} usable", warning=alone)


def check_threads() -> Finding:
    """A number of threads from the environment wins over the workbook's own choice in notebooks."""
    name = "OMP_NUM_THREADS"
    text = os.environ.get(name)
    if text is None:
        return _judge("threads", f"torch uses {torch.get_num_threads()}; a run shares the cores out by itself")
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
    """The least free space under any of the folders that a run writes into."""
    free, where = min((shutil.disk_usage(_standing(folder)).free, str(folder)) for folder in folders)
    advice = f"free some space for {where}, or choose another folder (--results-dir, --checkpoint-dir, --data-dir)"
    return _judge(
        "disk",
        f"{free / GIB:.1f} GiB free",
        fault=advice if free < LEAST_DISK else "",
        warning=advice if free < GOOD_DISK else "",
    )


def check_ports() -> Finding:
    """Whether a program may listen on loopback, and be reached there."""
    try:
        with socket.create_server((ADDRESS, 0)) as server:
            socket.create_connection(server.getsockname(), timeout=LOOKUP_SECONDS).close()
    except OSError as error:
        advice = f"let Python open ports on {ADDRESS}: a firewall, a proxy or a sandbox forbids it"
        return _judge("ports", f"no connection to {ADDRESS} ({error})", fault=advice)
    return _judge("ports", f"{ADDRESS} answers")


def check_loopback() -> Finding:
    """Gloo binds to the loopback interface by its name."""
    name = LOOPBACK.get(sys.platform)
    if name is None:
        return _judge("loopback interface", "not asked for by name on this system")
    families = (socket.AF_INET, socket.AF_INET6)
    addresses = [one.address for one in psutil.net_if_addrs().get(name, []) if one.family in families]
    up = name in psutil.net_if_stats() and psutil.net_if_stats()[name].isup
    advice = f"bring it up, as root: ip link set {name} up" if sys.platform == "linux" else f"bring {name} up"
    what = f"{name} {'is up' if up else 'is down'} with {', '.join(addresses) or 'no address'}"
    return _judge("loopback interface", what, fault="" if up and ADDRESS in addresses else advice)


def check_host_name() -> Finding:
    """Only runs on several machines look this machine's name up."""
    name = socket.gethostname()
    answers: list[str | Exception] = []

    def look_up() -> None:
        try:
            answers.append(socket.gethostbyname(name))
        except (OSError, UnicodeError) as error:
            answers.append(error)

    thread = threading.Thread(target=look_up, daemon=True)  # a lookup without an answer must not hold up the exit
    thread.start()
    thread.join(LOOKUP_SECONDS)
    answer = answers[0] if answers else OSError(f"no answer in {LOOKUP_SECONDS} s")
    fails = isinstance(answer, Exception)
    what = f"{name} is not found ({answer})" if fails else f"{name} is {answer}"
    advice = "one machine does not need it; for several, give every torchrun its own --local-addr (launch/README.md)"
    return _judge("host name", what, warning=advice if fails else "")


def check_versions() -> Finding:
    """torchvision's compiled part works with one version of torch, the one that it asks for."""
    try:
        what = f"torch {version('torch')}, torchvision {version('torchvision')}"
        wanted = [one.split("==")[1].split(";")[0].strip() for one in requires("torchvision") or () if "torch==" in one]
    except PackageNotFoundError as error:
        return _judge("torch and torchvision", str(error), fault='install both: pip install -e ".[dev]"')
    if wanted and version("torch").split("+")[0] != wanted[0].split("+")[0]:
        advice = f"install torch {wanted[0]}, or both anew: pip install --upgrade torch torchvision"
        return _judge("torch and torchvision", f"{what}, which wants torch {wanted[0]}", fault=advice)
    try:
        from torchvision.ops import nms

        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except Exception as error:  # whatever a mismatch of compiled parts does
        advice = "install both from the same index: pip install --upgrade torch torchvision"
        return _judge("torch and torchvision", f"{what} do not match ({_first_line(error)})", fault=advice)
    return _judge("torch and torchvision", what)


def check_backends() -> Finding:
    """What would carry the gradients, and what would compute them."""
    device = choose_device("auto")
    what = f"{choose_backend('auto', choose_device('auto', processes=2))} on {device.type}, "
    what += choose_precision("auto", device)
    advice = "install a torch that was built with Gloo, such as the one of pip install torch"
    return _judge("backend", what, fault="" if dist.is_gloo_available() else advice)


MEET = """
import datetime, torch, torch.distributed as dist
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=15))
value = torch.tensor([dist.get_rank() + 1])
dist.all_reduce(value)
print("sum", value.item())
dist.destroy_process_group()
"""


def check_all_reduce() -> Finding:
    """Two real processes add 1 and 2."""
    lines: list[str] = []
    try:
        run_on_ranks(MEET, 2, lines.append)
    except RuntimeError as error:
        lines.append(f"error: {_first_line(error)}")
    advice = "mend the faults above first; if there are none, try without VPN and firewall"
    met = lines.count("sum 3") == 2
    return _judge("all-reduce", "2 processes added 1 and 2" if met else _last(lines), fault="" if met else advice)


def check_cifar10(data_dir: Path) -> Finding:
    """CIFAR-10 by the MD5 sums that torchvision knows."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    folder = data_dir / CIFAR10.base_folder
    sums = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
    return _data("CIFAR-10", folder, [name for name, md5 in sums if not check_integrity(str(folder / name), md5)])


def check_mnist(data_dir: Path) -> Finding:
    """MNIST by what its unpacked files hold; torchvision knows the sums of the packed ones alone."""
    from torchvision.datasets import MNIST

    folder = data_dir / "MNIST"
    bad = []
    for train, count in zip((True, False), IMAGES["mnist"], strict=True):
        try:
            part = MNIST(str(data_dir), train=train)
            whole = part.data.shape == (count, 28, 28) and part.targets.unique().tolist() == list(range(10))
        except Exception:  # torchvision reads a torn file with asserts, numpy and struct
            whole = False
        bad += [] if whole else ["training set" if train else "test set"]
    return _data("MNIST", folder, bad)


def _data(name: str, folder: Path, bad: list[str]) -> Finding:
    if not folder.exists():
        return _judge(name, f"not in {folder.parent} yet: a recipe that needs it downloads it once")
    advice = f"move {folder} away and start the recipe again, which downloads it"
    return _judge(name, f"damaged: {', '.join(bad)}" if bad else "present and intact", fault=advice if bad else "")


def check_folders(folders: Iterable[Path]) -> Finding:
    """Whether a file can be made in each folder, or in the one that it will be made in."""
    for folder in folders:
        try:
            with tempfile.TemporaryFile(dir=_standing(folder)):
                pass
        except OSError as error:
            advice = f"make {folder} writable, or choose another (--results-dir, --checkpoint-dir, --data-dir)"
            return _judge("folders", f"cannot write into {folder} ({error.strerror})", fault=advice)
    return _judge("folders", f"{', '.join(map(str, folders))} can be written")


def _standing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _last(lines: list[str]) -> str:
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "the processes said nothing")


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
        "CIFAR-10": lambda: check_cifar10(data_dir),
        "MNIST": lambda: check_mnist(data_dir),
    }
    with ThreadPoolExecutor(1) as pool:
        met = pool.submit(_examined, "all-reduce", check_all_reduce)  # mostly waiting: beside the others
        return [*(_examined(name, check) for name, check in checks.items()), met.result()]


def _examined(name: str, check: Callable[[], Finding]) -> Finding:
    """A check that breaks is a fault of what it looked at."""
    try:
        return check()
    except Exception as error:
        advice = "this should not happen: please report it with the whole line"
        return Finding(name, "fault", f"cannot be examined ({type(error).__name__}: {_first_line(error)})", advice)


def describe(findings: Iterable[Finding]) -> str:
    """A line for each finding, with its mend under it."""
    lines = []
    for one in findings:
        lines.append(f"{one.state:<8} {one.name}: {one.what}")
        lines += [f"{'':<8} -> {one.mend}"] if one.mend else []
    return "\n".join(lines)
