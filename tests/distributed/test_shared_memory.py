"""Gradient all-reduce through shared memory: the same weights as with sockets, and no file left behind."""

import errno
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import run_on_ranks
from torch import nn

import distributed_train
from ddp_workbook.config import CheckpointOptions, TrainConfig
from ddp_workbook.distributed import shared_memory
from ddp_workbook.distributed.ddp import MeteredDDP
from ddp_workbook.distributed.process_group import World
from ddp_workbook.distributed.shared_memory import require_shared_memory
from ddp_workbook.errors import InputError

CPU = torch.device("cpu")
STEPS = 5


def weights_after_steps(rank, comm_hook):
    """A network of more than one bucket, trained on other images on every rank, every other batch under no_sync."""
    torch.manual_seed(0)
    layers = [nn.Linear(20, 600), nn.ReLU(), nn.Linear(600, 600), nn.ReLU(), nn.Linear(600, 600)]
    model = MeteredDDP(nn.Sequential(*layers), CPU, TrainConfig(comm_hook=comm_hook))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    torch.manual_seed(rank)
    for _ in range(STEPS):
        with model.no_sync():
            model(torch.randn(8, 20)).square().mean().backward()
        model(torch.randn(8, 20)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    buckets = len(model.meter.take().buckets)
    return buckets, torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()


def with_both_hooks(rank):
    """Buckets, weights with each of the hooks, and the files that this rank has created for them."""
    files, new_file = [], shared_memory._new_file
    shared_memory._new_file = lambda size: files.append(new_file(size)) or files[-1]
    (buckets, shared), (_, reduced) = (weights_after_steps(rank, hook) for hook in ("shared-memory", "allreduce"))
    return buckets, shared, reduced, files


@pytest.mark.parametrize(("ranks", "tolerance"), [(1, 0.0), (2, 0.0), (3, 1e-6)])
def test_the_weights_are_those_of_an_all_reduce(ranks, tolerance):
    """Of one and two ranks, bit for bit: halving is exact, and two numbers have one sum."""
    answers = run_on_ranks(with_both_hooks, ranks)
    assert answers[0][0] > STEPS
    for _, shared, reduced, _ in answers:
        assert (shared == answers[0][1]).all()
        assert abs(shared - reduced).max() <= tolerance
    assert [len(files) for _, _, _, files in answers] == [1] + [0] * (ranks - 1)
    assert not Path(answers[0][3][0]).exists()


def without_memory(rank, folder):
    def nothing_left(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    shared_memory.FOLDER = Path(folder)
    os.posix_fallocate = nothing_left
    with pytest.raises(InputError, match=r"needs 0 MiB of shared memory \(No space left on device\); .*--shm-size"):
        shared_memory.SharedMemoryAverage(10)
    return list(Path(folder).iterdir())


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="only there can memory be reserved beforehand")
def test_too_little_memory_is_an_error_on_every_rank(tmp_path):
    assert run_on_ranks(without_memory, 2, str(tmp_path)) == [[], []]


@pytest.mark.parametrize(
    ("device", "processes", "local", "message"),
    [("cpu", 1, 1, "needs several processes"), ("cuda", 2, 2, "needs --device cpu"), ("cpu", 4, 2, "on one machine")],
)
def test_where_it_cannot_work(device, processes, local, message):
    with pytest.raises(InputError, match=message):
        require_shared_memory(torch.device(device), processes, local)


def test_it_is_refused_where_the_tables_of_the_model_do_not_fit(monkeypatch):
    """Two tables with a row of float32 for each rank: 16 bytes a parameter for two ranks."""
    free = SimpleNamespace(free=16 * 1_000_000)
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda _: free)
    require_shared_memory(torch.device("cpu"), 2, 2, 1_000_000)
    with pytest.raises(InputError, match=r"needs 15 MiB of shared memory \(15 MiB are free\)"):
        require_shared_memory(torch.device("cpu"), 2, 2, 1_000_001)


def test_the_script_refuses_before_it_loads_any_data(config, monkeypatch):
    """Where the ranks have met, so that all of them refuse."""
    world = World(0, 2, 0, 1, launched=True)
    monkeypatch.setattr(distributed_train, "process_group", lambda *_: nullcontext())
    monkeypatch.setattr(distributed_train, "load_dataset", None)
    with pytest.raises(InputError, match="on one machine"):
        distributed_train.run(replace(config, comm_hook="shared-memory"), CheckpointOptions(), world)
