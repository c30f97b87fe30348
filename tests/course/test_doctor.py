"""The doctor: every fault is faked, and found with its fix."""

import collections
import os
import socket
import sys

import psutil
import pytest
import torch
from conftest import ROOT, needs_real_data

from ddp_workbook import cli
from ddp_workbook.course import doctor
from ddp_workbook.course.doctor import Finding, describe, examine
from ddp_workbook.errors import InputError

Usage = collections.namedtuple("Usage", "free")
Memory = collections.namedtuple("Memory", "available")


def raiser(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def one_core(patch, tmp_path):
    patch.setattr(doctor, "available_cores", lambda: 1)
    return doctor.check_cores()


def too_many_threads(patch, tmp_path):
    patch.setenv("OMP_NUM_THREADS", "100000")
    return doctor.check_threads()


def threads_that_are_no_number(patch, tmp_path):
    patch.setenv("OMP_NUM_THREADS", "all")
    return doctor.check_threads()


def no_memory(patch, tmp_path):
    patch.setattr(psutil, "virtual_memory", lambda: Memory(2**28))
    return doctor.check_memory()


def little_memory(patch, tmp_path):
    patch.setattr(psutil, "virtual_memory", lambda: Memory(2 * 2**30))
    return doctor.check_memory()


def no_disk(patch, tmp_path):
    patch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(10_000))
    return doctor.check_disk([tmp_path / "not" / "yet"])


def little_disk(patch, tmp_path):
    patch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(2 * 2**30))
    return doctor.check_disk([tmp_path])


def no_port(patch, tmp_path):
    patch.setattr(socket, "create_server", raiser(PermissionError(13, "Permission denied")))
    return doctor.check_ports()


def port_without_answer(patch, tmp_path):
    patch.setattr(socket, "create_connection", raiser(TimeoutError("timed out")))
    return doctor.check_ports()


def loopback_down(patch, tmp_path):
    patch.setattr(sys, "platform", "linux")
    stats = collections.namedtuple("Stats", "isup")
    patch.setattr(psutil, "net_if_stats", lambda: {"lo": stats(False)})
    return doctor.check_loopback()


def loopback_missing(patch, tmp_path):
    patch.setattr(sys, "platform", "linux")
    patch.setattr(psutil, "net_if_addrs", dict)
    return doctor.check_loopback()


def unknown_name(patch, tmp_path):
    patch.setattr(socket, "gethostbyname", raiser(socket.gaierror(-2, "Name or service not known")))
    return doctor.check_host_name()


def slow_name(patch, tmp_path):
    import threading

    patch.setattr(doctor, "LOOKUP_SECONDS", 0.05)
    patch.setattr(socket, "gethostbyname", lambda name: threading.Event().wait(0.5))
    return doctor.check_host_name()


def other_torch(patch, tmp_path):
    patch.setattr(doctor, "requires", lambda name: ["numpy", "torch==1.2.3", "pillow"])
    return doctor.check_versions()


def torchvision_missing(patch, tmp_path):
    patch.setattr(doctor, "version", raiser(doctor.PackageNotFoundError("torchvision")))
    return doctor.check_versions()


def torchvision_of_another_build(patch, tmp_path):
    import torchvision

    patch.setattr(torchvision.ops, "nms", raiser(RuntimeError("operator torchvision::nms does not exist")))
    return doctor.check_versions()


def no_gloo(patch, tmp_path):
    patch.setattr(torch.distributed, "is_gloo_available", lambda: False)
    return doctor.check_backends()


def ranks_that_fail(patch, tmp_path):
    patch.setattr(doctor, "run_on_ranks", raiser(RuntimeError("Connection refused\nand more")))
    return doctor.check_all_reduce()


def ranks_that_add_wrong(patch, tmp_path):
    patch.setattr(doctor, "run_on_ranks", lambda code, count, say: [say("sum 3"), say("sum 2")])
    return doctor.check_all_reduce()


def truncated_cifar10(patch, tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"truncated")
    return doctor.check_dataset("cifar10", tmp_path)


def truncated_mnist(patch, tmp_path):
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"truncated")
    return doctor.check_dataset("mnist", tmp_path)


def folder_in_the_way(patch, tmp_path):
    (tmp_path / "results").write_text("a file")
    return doctor.check_folders([tmp_path / "checkpoints", tmp_path / "results"])


FAULTS = {
    one_core: ("warning", "one core"),
    too_many_threads: ("warning", "unset OMP_NUM_THREADS"),
    threads_that_are_no_number: ("warning", "unset OMP_NUM_THREADS"),
    no_memory: ("fault", "close other programs"),
    little_memory: ("warning", "close other programs"),
    no_disk: ("fault", "free some space"),
    little_disk: ("warning", "free some space"),
    no_port: ("fault", "firewall"),
    port_without_answer: ("fault", "firewall"),
    loopback_down: ("fault", "ip link set lo up"),
    loopback_missing: ("fault", "ip link set lo up"),
    unknown_name: ("warning", "--local-addr"),
    slow_name: ("warning", "--local-addr"),
    other_torch: ("fault", "install torch 1.2.3"),
    torchvision_missing: ("fault", "install both"),
    torchvision_of_another_build: ("fault", "from the same index"),
    no_gloo: ("fault", "built with Gloo"),
    ranks_that_fail: ("fault", "VPN and firewall"),
    ranks_that_add_wrong: ("fault", "VPN and firewall"),
    truncated_cifar10: ("fault", "cifar-10-batches-py away"),
    truncated_mnist: ("fault", "MNIST away"),
    folder_in_the_way: ("fault", "make"),
}


@pytest.mark.parametrize("fake", FAULTS, ids=lambda fake: fake.__name__)
def test_a_fault_is_found_with_its_fix(fake, monkeypatch, tmp_path):
    found = fake(monkeypatch, tmp_path)
    state, fix = FAULTS[fake]
    assert (found.state, fix in found.fix) == (state, True), found
    assert "\n" not in found.what + found.fix


def test_checks_of_folders_create_nothing(monkeypatch, tmp_path):
    """A folder that does not exist is judged by the nearest one above it that does."""
    folders, asked = [tmp_path / "a" / "b", tmp_path / "c"], []
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: asked.append(path) or Usage(5 * 2**30))
    assert doctor.check_folders(folders).state == "ok"
    assert doctor.check_disk(folders) == Finding("disk", "ok", "5.0 GiB free")
    assert asked == [tmp_path, tmp_path]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("free", "state"), [(0.9, "fault"), (1.1, "warning"), (2.9, "warning"), (3.1, "ok")])
def test_the_folder_with_the_least_space_decides(monkeypatch, tmp_path, free, state):
    (tmp_path / "full").mkdir()
    usage = {tmp_path: Usage(9 * 2**30), tmp_path / "full": Usage(free * 2**30)}
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage[path])
    found = doctor.check_disk([tmp_path, tmp_path / "full" / "results"])
    assert (found.state, found.what) == (state, f"{free} GiB free")
    assert (f"free some space for {tmp_path / 'full' / 'results'}" in found.fix) == (state != "ok")


def test_a_data_set_that_was_not_downloaded_is_no_fault(tmp_path):
    found = doctor.check_dataset("cifar10", tmp_path)
    assert (found.state, found.what) == ("ok", f"not in {tmp_path} yet: a recipe that needs it downloads it once")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder_is_a_fault(tmp_path):
    tmp_path.chmod(0o500)
    assert doctor.check_folders([tmp_path / "results"]).state == "fault"


@needs_real_data
def test_the_real_data_is_complete():
    found = [doctor.check_dataset(name, ROOT / "data") for name in ("cifar10", "mnist")]
    assert [(one.state, one.what) for one in found] == [("ok", "complete")] * 2


def test_two_real_processes_meet():
    assert doctor.check_all_reduce() == Finding("all-reduce", "ok", "2 processes added 1 and 2")


def test_a_check_that_fails_itself_is_a_fault_and_the_others_continue(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "check_all_reduce", raiser(InputError("no script")))
    monkeypatch.setattr(doctor, "check_memory", raiser(ZeroDivisionError("unforeseen")))
    found = {one.name: one for one in examine(tmp_path, tmp_path, tmp_path)}
    assert len(found) == 13
    assert "ZeroDivisionError: unforeseen" in found["memory"].what
    assert [found[name].state for name in ("memory", "all-reduce", "folders")] == ["fault", "fault", "ok"]


@pytest.mark.parametrize(("state", "code"), [("ok", None), ("warning", None), ("fault", 1)])
def test_the_command_prints_a_line_for_each_finding_and_fails_after_a_fault(monkeypatch, capsys, state, code):
    findings = [Finding("cores", "ok", "2 of 2 usable"), Finding("disk", state, "little", "fix" * (state != "ok"))]
    monkeypatch.setattr(doctor, "examine", lambda *folders: findings)
    monkeypatch.setattr("sys.argv", ["ddp-workbook", "doctor"])
    if code is None:
        cli.main()
    else:
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == code
    lines = capsys.readouterr().out.splitlines()
    assert lines == describe(findings).splitlines()
    assert lines[0] == "ok       cores: 2 of 2 usable"
    assert (len(lines) == 3) == (state != "ok")
