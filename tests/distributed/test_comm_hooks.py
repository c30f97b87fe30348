"""Communication hooks against exact gradients, and the meter against times that are made by hand."""

from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from conftest import make_data, run_on_ranks
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

from ddp_workbook.config import CommHookName, TrainConfig
from ddp_workbook.distributed import comm_hooks
from ddp_workbook.distributed.comm_hooks import CommunicationMeter, Traffic, build_comm_hook, check_comm_hook
from ddp_workbook.distributed.ddp import MeteredDDP
from ddp_workbook.distributed.process_group import World
from ddp_workbook.errors import InputError
from ddp_workbook.records.timing import Bucket
from ddp_workbook.training.loader import Normalize

CPU = torch.device("cpu")
HOOKS = get_args(CommHookName)
# 8 bits of precision round by at most 1/256, 11 bits by 1/2048; exactly zero would mean no compression. PowerSGD's hook
# sends whole gradients in its first steps, while the approximation would do harm.
ERRORS = {
    "allreduce": (0, 1e-6),
    "bf16": (1e-5, 1e-2),
    "fp16": (1e-6, 1e-2),
    "powersgd": (0, 1e-6),
    "shared-memory": (0, 1e-6),
}


def plain_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))


def gradients(model, images, labels):
    nn.functional.cross_entropy(model(images), labels).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def relative_errors(rank):
    """For each hook, the error of the gradients of two ranks, relative to those of the joined batch."""
    data = make_data()
    images, labels = Normalize(data, CPU)(data.train.images[:16]), data.train.labels[:16]
    exact = gradients(plain_model(), images, labels)
    found = {}
    for name in HOOKS:
        model = MeteredDDP(plain_model(), CPU, replace(TrainConfig(), comm_hook=name))
        found[name] = ((gradients(model, images[rank::2], labels[rank::2]) - exact).norm() / exact.norm()).item()
    return found


@pytest.fixture(scope="module")
def errors():
    return run_on_ranks(relative_errors, 2)


@pytest.mark.parametrize("name", HOOKS)
def test_gradients_are_those_of_the_joined_batch(errors, name):
    low, high = ERRORS[name]
    assert all(low <= error[name] <= high for error in errors)


def test_powersgd_has_rank_2_and_begins_at_step_10():
    state, hook = build_comm_hook("powersgd", numel=10)
    assert hook is powerSGD_hook.powerSGD_hook
    assert (state.matrix_approximation_rank, state.start_powerSGD_iter) == (2, 10)


@pytest.mark.parametrize("name", HOOKS)
def test_only_shared_memory_needs_one_machine(name):
    world = World(0, 4, 0, 2, launched=True)
    if name == "shared-memory":
        with pytest.raises(InputError, match="on one machine"):
            check_comm_hook(name, CPU, world)
    else:
        check_comm_hook(name, CPU, world)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands at `clock.now`."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(comm_hooks.time, "perf_counter", lambda: clock.now)
    return clock


def bucket(values):
    return SimpleNamespace(buffer=lambda: torch.zeros(values))


def test_the_meter_notes_each_bucket_and_each_wait(clock):
    """Two buckets, ready at 100 and 101 s, all-reduced at 104 and 103 s; backward ends at 105 s."""
    meter = CommunicationMeter("allreduce", 25, CPU)
    futures = [torch.futures.Future(), torch.futures.Future()]
    all_reduces = iter(futures)
    meter.inner = lambda state, bucket: next(all_reduces)
    for clock.now, size in ((100.0, 10), (101.0, 15)):
        meter.hook(None, bucket(size))
    for clock.now, future in ((103.0, futures[1]), (104.0, futures[0])):
        future.set_result(torch.zeros(1))
    clock.now = 105.0
    meter.backward_ended()
    traffic = meter.take()
    assert traffic == Traffic([Bucket(ready=0, done=4, bytes=40), Bucket(ready=1, done=3, bytes=60)], [4.0])
    assert (traffic.collective_seconds, traffic.gradient_bytes) == (6.0, 100)
    assert meter.take() == Traffic([], [])


def test_the_meter_passes_on_what_the_hook_returns(clock):
    meter = CommunicationMeter("allreduce", 2, CPU)
    inner = torch.futures.Future()
    meter.inner = lambda state, bucket: inner
    outer = meter.hook(None, bucket(2))
    assert not outer.done()
    inner.set_result(torch.tensor([1.0, 2.0]))
    assert outer.wait().tolist() == [1.0, 2.0]
