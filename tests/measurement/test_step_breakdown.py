"""What is measured inside a step, against delays that are made by hand."""

import itertools
import threading
import time

import pytest
import torch
from conftest import run_on_ranks
from ddp_workbook.measurement.step_breakdown import time_steps
from torch import nn

from ddp_workbook import distributed
from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import Precision

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


def anatomies(rank, cases):
    found = []
    for pause, delays in cases:
        torch.manual_seed(0)
        model = distributed.MeteredDDP(TwoBuckets(pause), CPU, TrainConfig())
        model.meter.inner = delayed(delays)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        batch = torch.randn(4, 8), torch.randint(600, (4,))
        arithmetic = Precision(CPU, "fp32")
        averaged, alone, timeline = time_steps(model, itertools.repeat([batch]), optimizer, arithmetic, 0.0, STEPS)
        found.append((averaged, alone, timeline))
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
    return run_on_ranks(anatomies, 2, [(pause, delays) for pause, delays, _ in CASES])


@pytest.mark.parametrize("case", range(len(CASES)))
def test_exposed_moves_by_what_overlap_leaves(measured, case):
    _, _, expected = CASES[case]
    for rank in measured:
        averaged, alone, _ = rank[case]
        differences = sorted(a.total - b.total for a, b in zip(averaged, alone, strict=True))
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
