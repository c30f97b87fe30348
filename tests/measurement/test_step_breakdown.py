"""The parts of a step and its communication, against delays that are made by hand; and those of a real step."""

import itertools
import threading
import time
from dataclasses import replace

import pytest
import torch
from conftest import run_on_ranks
from torch import nn

from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import Precision
from ddp_workbook.distributed.ddp import MeteredDDP
from ddp_workbook.errors import InputError
from ddp_workbook.measurement.step_breakdown import benchmark_all_reduce, measure_step_breakdown, time_steps
from ddp_workbook.measurement.workers import WorkerPool
from ddp_workbook.recipes import RECIPES
from ddp_workbook.training.state import TrainingState

CPU = torch.device("cpu")
STEPS = 5
SLACK = 0.02  # seconds by which a loaded machine may be late


class SlowBackward(torch.autograd.Function):
    """Passes everything on; the backward pass sleeps."""

    @staticmethod
    def forward(context, x, seconds):
        context.seconds = seconds
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        time.sleep(context.seconds)
        return gradient, None


class TwoBuckets(nn.Module):
    """The last layer fills DDP's first bucket (1 MiB); the first layer's gradients come after a pause."""

    def __init__(self, pause):
        super().__init__()
        self.pause, self.first, self.last = pause, nn.Linear(8, 512), nn.Linear(512, 600)

    def forward(self, x):
        return self.last(SlowBackward.apply(self.first(x), self.pause))


def delayed(delays):
    """A hook that averages nothing: bucket i is done after delays[i] seconds, and meanwhile the processor is free."""

    def hook(_, bucket):
        future = torch.futures.Future()
        result = bucket.buffer()
        threading.Timer(delays[bucket.index()], lambda: future.set_result(result)).start()
        return future

    return hook


def time_cases(rank, cases):
    found = []
    for pause, delays in cases:
        torch.manual_seed(0)
        model = MeteredDDP(TwoBuckets(pause), CPU, TrainConfig())
        model.meter.inner = delayed(delays)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
        state = TrainingState(model, optimizer, schedule, Precision(CPU, "fp32"), epochs=1, steps_per_epoch=1)
        batch = torch.randn(4, 8), torch.randint(600, (4,))
        found.append(time_steps(state, itertools.repeat([batch]), 0.0, STEPS))
    return found


# pause between the buckets, delay of each bucket, exposed seconds expected: only what outlasts the backward pass
CASES = [
    (0.0, (0.06, 0.06), 0.06),
    (0.10, (0.06, 0.0), 0.0),
    (0.03, (0.08, 0.0), 0.05),
    (0.10, (0.06, 0.06), 0.06),
]


@pytest.fixture(scope="module")
def measured():
    return run_on_ranks(time_cases, 2, [(pause, delays) for pause, delays, _ in CASES])


@pytest.mark.parametrize("case", range(len(CASES)))
def test_exposed_moves_by_what_overlap_leaves(measured, case):
    _, _, expected = CASES[case]
    for rank in measured:
        synced, no_sync, _ = rank[case]
        differences = sorted(a.total - b.total for a, b in zip(synced, no_sync, strict=True))
        assert differences[STEPS // 2] == pytest.approx(expected, abs=SLACK)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_summed_collectives_know_nothing_of_overlap(measured, case):
    _, delays, _ = CASES[case]
    for rank in measured:
        summed = sorted(step.collectives for step in rank[case][0])
        assert summed[STEPS // 2] == pytest.approx(sum(delays), abs=2 * SLACK)


def test_waiting_begins_with_the_last_bucket(measured):
    """Both buckets delayed by 60 ms, 100 ms apart: after the last is ready, 60 ms remain."""
    for rank in measured:
        waited = sorted(step.waited for step in rank[3][0])
        assert waited[STEPS // 2] == pytest.approx(0.06, abs=SLACK)
        assert all(step.collectives == step.waited == 0 for step in rank[3][1])


def test_the_timeline_shows_both_buckets_where_they_were(measured):
    timeline = measured[0][3][2]
    first, last = timeline.buckets
    assert [bucket.bytes for bucket in (first, last)] == [4 * (512 * 600 + 600), 4 * (8 * 512 + 512)]
    assert last.ready - first.ready == pytest.approx(0.10, abs=SLACK)
    assert first.done - first.ready == pytest.approx(0.06, abs=SLACK)
    assert timeline.marks == sorted(timeline.marks)
    _, _, backward_start, backward_end, _ = timeline.marks
    assert backward_start - 1e-3 <= first.ready <= last.done <= backward_end + 1e-3


CONFIG = replace(RECIPES["mlp-digits"], dropout=0.0, precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def pool():
    with WorkerPool("a pair", CONFIG, 2, 1) as found:
        yield found


def test_the_breakdown_of_a_real_step(pool):
    record = measure_step_breakdown(CONFIG, pool, steps=4)
    assert [len(rank) for rank in record.synced + record.no_sync] == [4] * 4
    assert record.gradient_bytes == 4 * record.parameters
    assert (record.processes, record.threads, record.precision) == (2, 1, "fp32")
    for rank in record.synced:
        for step in rank:
            assert 0 < step.waited <= step.backward
            assert step.collectives > 0
    assert all(step.collectives == step.waited == 0 for rank in record.no_sync for step in rank)


def test_one_step_has_no_breakdown(pool):
    with pytest.raises(InputError, match="needs at least 2 steps, not 1"):
        measure_step_breakdown(CONFIG, pool, steps=1)


def test_an_all_reduce_costs_more_for_more_bytes(pool):
    sizes = (2**10, 2**22, 2**25)
    found = benchmark_all_reduce(pool, sizes)
    assert tuple(sample.bytes for sample in found.samples) == sizes
    medians = [sorted(sample.seconds)[len(sample.seconds) // 2] for sample in found.samples]
    assert medians == sorted(medians)
    assert medians[2] > 2 * medians[0]
