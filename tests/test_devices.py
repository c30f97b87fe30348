"""What a run uses of the machine, and what it refuses."""

import os
from types import SimpleNamespace

import pytest
import torch

from ddp_workbook import devices
from ddp_workbook.config import TrainConfig
from ddp_workbook.errors import InputError

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")


@pytest.fixture
def machine(monkeypatch):
    """Pretend to be a machine with this accelerator (None: only a CPU) and this many GPUs."""

    def pretend(kind, gpus=0):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: SimpleNamespace(type=kind))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)

    return pretend


@pytest.mark.parametrize(
    ("kind", "gpus", "asked", "processes", "local_rank", "expected"),
    [
        (None, 0, "auto", 1, 0, CPU),
        (None, 0, "cpu", 2, 1, CPU),
        ("cuda", 2, "auto", 2, 1, torch.device("cuda", 1)),
        ("cuda", 1, "auto", 2, 1, CUDA),
        ("cuda", 2, "cpu", 2, 1, CPU),
        ("mps", 0, "auto", 1, 0, MPS),
        ("mps", 0, "auto", 2, 0, CPU),
    ],
)
def test_device(machine, kind, gpus, asked, processes, local_rank, expected):
    machine(kind, gpus)
    assert devices.choose_device(asked, processes, local_rank) == expected


@pytest.mark.parametrize(
    ("kind", "asked", "processes", "message"),
    [(None, "cuda", 1, "not available"), ("mps", "mps", 2, "Gloo has no MPS"), (None, "mps", 1, "not available")],
)
def test_device_that_is_not_there(machine, kind, asked, processes, message):
    machine(kind)
    with pytest.raises(InputError, match=message):
        devices.choose_device(asked, processes)


def test_backend(machine):
    machine("cuda", gpus=2)
    assert devices.choose_backend("auto", CPU) == "gloo"
    assert devices.choose_backend("auto", CUDA, local_processes=2) == "nccl"
    assert devices.choose_backend("auto", CUDA, local_processes=3) == "gloo"
    with pytest.raises(InputError, match="needs CUDA devices"):
        devices.choose_backend("nccl", CPU)


def test_nccl_wants_a_gpu_per_process(machine, monkeypatch):
    machine("cuda", gpus=1)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    with pytest.raises(InputError, match="one GPU per process"):
        devices.choose_backend("nccl", CUDA, local_processes=2)


@pytest.mark.parametrize(
    ("device", "bf16", "asked", "expected"),
    [
        (CPU, True, "auto", "bf16"),
        (CPU, False, "auto", "fp32"),
        (CUDA, True, "auto", "bf16"),
        (CUDA, False, "auto", "fp16"),
        (MPS, True, "auto", "fp32"),
        (CPU, False, "fp32", "fp32"),
        (CUDA, False, "fp16", "fp16"),
    ],
)
def test_precision(monkeypatch, device, bf16, asked, expected):
    monkeypatch.setattr(devices, "has_bf16", lambda _: bf16)
    assert devices.choose_precision(asked, device) == expected


def test_precision_that_the_hardware_lacks(monkeypatch):
    monkeypatch.setattr(devices, "has_bf16", lambda _: False)
    with pytest.raises(InputError, match="bf16 is not in this cpu's hardware"):
        devices.choose_precision("bf16", CPU)
    with pytest.raises(InputError, match="fp16 needs an accelerator"):
        devices.choose_precision("fp16", CPU)


def test_the_precision_of_a_run_follows_its_flag_and_its_device(monkeypatch):
    monkeypatch.setattr(devices, "has_bf16", lambda _: True)
    found = devices.Precision.of(TrainConfig(), CPU)
    assert (found.name, found.dtype, found.device) == ("bf16", torch.bfloat16, CPU)
    found = devices.Precision.of(TrainConfig(precision="fp32"), CPU)
    assert found.name == "fp32"
    with found.autocast():
        assert not torch.is_autocast_enabled("cpu")


def test_each_process_gets_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(devices, "available_cores", lambda: 8)
    assert [devices.choose_threads(0, n) for n in (1, 2, 3, 8, 16)] == [8, 4, 2, 1, 1]
    assert devices.choose_threads(5, 2) == 5
    before = torch.get_num_threads()
    assert devices.prepare_cpu(TrainConfig(threads=1), 1) == torch.get_num_threads() == 1
    torch.set_num_threads(before)


@pytest.mark.parametrize(("said", "expected"), [(4, 4), (16, 8), (None, 8)])
def test_physical_cores_are_those_of_the_available_ones(monkeypatch, said, expected):
    monkeypatch.setattr(devices, "available_cores", lambda: 8)
    monkeypatch.setattr(devices.psutil, "cpu_count", lambda logical: 32 if logical else said)
    assert devices.physical_cores() == expected


def test_environment_agrees_with_the_machine():
    environment = devices.describe_environment(CPU)
    assert environment.torch == torch.__version__
    assert environment.cores <= os.cpu_count()
    assert environment.accelerator is None
    assert 2**28 < environment.memory_bytes < 2**50


def test_peak_memory_grows_with_what_is_allocated():
    before = devices.peak_memory_bytes()
    block = torch.ones(before // 4 + 2**26)  # four bytes each: more than the peak so far
    assert devices.peak_memory_bytes() - before > 2**26
    del block
