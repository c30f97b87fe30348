"""Step-time breakdown: data, forward, backward, optimizer, with gradient synchronization and without; all-reduces."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import choose_device, describe_environment, synchronize
from ddp_workbook.distributed.comm_hooks import Traffic
from ddp_workbook.distributed.ddp import gradient_sync, unwrap
from ddp_workbook.errors import InputError
from ddp_workbook.measurement.workers import Worker, WorkerPool
from ddp_workbook.records.timing import AllReduceBenchmark, AllReduceTimes, Bucket, StepBreakdown, StepTimes, Timeline
from ddp_workbook.training.loader import Batch
from ddp_workbook.training.models import count_parameters
from ddp_workbook.training.state import TrainingState

WARM_UP_STEPS = 3
ALL_REDUCE_BYTES = tuple(2**power for power in (10, 12, 14, 16, 18, 20, 22, 24, 26, 27))  # 1 KiB to 128 MiB
BYTES_PER_SIZE = 64 * 2**20  # sent in all for one size: small messages are repeated often


def time_steps(
    state: TrainingState, batches: Iterator[list[Batch]], smoothing: float, steps: int, warm_up: int = WARM_UP_STEPS
) -> tuple[list[StepTimes], list[StepTimes], Timeline]:
    """On one rank, `steps` pairs of a synced step and a step under no_sync, in turns, after `warm_up` pairs.

    A barrier before each step keeps a step from paying for the one before. Returns the times of both kinds, and the
    timeline of the last synced step on this machine's clock.
    """
    times: dict[bool, list[StepTimes]] = {True: [], False: []}
    timeline = None
    for number in range(2 * (warm_up + steps)):
        synced = number % 2 == 0
        dist.barrier()
        state.model.meter.take()
        step, marks = _time_step(state, batches, smoothing, synced)
        if number < 2 * warm_up:
            continue
        if synced:
            traffic = state.model.meter.take()
            step = step.model_copy(update={"collectives": traffic.collective_seconds, "waited": traffic.waited[0]})
            timeline = _timeline(marks, traffic)
        times[synced].append(step)
    return times[True], times[False], timeline


def _timeline(marks: list[float], traffic: Traffic) -> Timeline:
    """Marks and buckets on one clock: the meter's last bucket was ready `waited` seconds before backward ended."""
    _, _, _, backward_end, _ = marks
    return Timeline(
        marks=marks, buckets=_later(traffic.buckets, backward_end - traffic.waited[0] - traffic.buckets[-1].ready)
    )


def _later(buckets: list[Bucket], seconds: float) -> list[Bucket]:
    return [each.model_copy(update={"ready": each.ready + seconds, "done": each.done + seconds}) for each in buckets]


def since_first(timelines: Sequence[Timeline]) -> list[Timeline]:
    """The ranks' timelines in seconds since the first of them began.

    time.perf_counter() is one clock for all processes of a machine. Those of several machines would have to be aligned.
    """
    first = min(each.marks[0] for each in timelines)
    return [
        Timeline(marks=[mark - first for mark in each.marks], buckets=_later(each.buckets, -first))
        for each in timelines
    ]


def _time_step(
    state: TrainingState, batches: Iterator[list[Batch]], smoothing: float, synced: bool
) -> tuple[StepTimes, list[float]]:
    """The step of loop.train_step(), with the clock read between its parts."""
    model, optimizer, precision = state.model, state.optimizer, state.precision
    marks = [time.perf_counter()]

    def mark() -> None:
        synchronize(precision.device)
        marks.append(time.perf_counter())

    [(images, labels)] = next(batches)
    mark()
    optimizer.zero_grad(set_to_none=True)
    with gradient_sync(model, enabled=synced):
        with precision.autocast():
            loss = functional.cross_entropy(model(images), labels, label_smoothing=smoothing)
        mark()
        precision.scaler.scale(loss).backward()
    mark()
    precision.scaler.step(optimizer)
    precision.scaler.update()
    mark()
    data, forward, backward, step = (after - before for before, after in pairwise(marks))
    return StepTimes(data=data, forward=forward, backward=backward, optimizer=step), marks


def slowed(worker: Worker, model: nn.Module, seconds: float) -> AbstractContextManager:
    """Context in which the last rank begins each forward pass with so many seconds of sleep."""
    if not seconds or worker.world.rank < worker.world.size - 1:
        return nullcontext()
    return unwrap(model).register_forward_pre_hook(lambda *_: time.sleep(seconds))


def time_session_steps(
    worker: Worker, config: TrainConfig, steps: int, warm_up: int = WARM_UP_STEPS, slow: float = 0.0
) -> tuple[list[StepTimes], list[StepTimes], Timeline]:
    """time_steps() in a worker's training session; the last rank sleeps `slow` seconds in each forward pass."""
    session = worker.session(replace(config, grad_accum_steps=1), True)
    with slowed(worker, session.state.model, slow):
        return time_steps(session.state, session.batches, config.label_smoothing, steps, warm_up)


def describe_session(worker: Worker, config: TrainConfig) -> tuple[int, str]:
    """Number of parameters, precision."""
    state = worker.session(replace(config, grad_accum_steps=1), True).state
    return count_parameters(state.model), state.precision.name


def measure_step_breakdown(config: TrainConfig, pool: WorkerPool, steps: int, slow: float = 0.0) -> StepBreakdown:
    """Breakdown of `steps` steps with and `steps` without synchronization; config.batch_size is each process's.

    `slow`: seconds that the last rank sleeps in each forward pass.
    """
    if steps < 2:
        raise InputError(f"the step-time breakdown needs at least 2 steps, not {steps}")
    answers = pool.call(time_session_steps, config, steps, WARM_UP_STEPS, slow)
    parameters, precision = pool.call(describe_session, config)[0]
    synced, no_sync, timelines = zip(*answers, strict=True)
    return StepBreakdown(
        recipe=config.recipe,
        config=config,
        environment=describe_environment(choose_device(config.device, pool.processes)),
        processes=pool.processes,
        threads=pool.threads,
        precision=precision,
        parameters=parameters,
        synced=synced,
        no_sync=no_sync,
        timelines=since_first(timelines),
    )


def time_all_reduces(worker: Worker, sizes: tuple[int, ...]) -> list[list[float]]:
    """Seconds to all-reduce `size` bytes of gradients as DDP does it, for every size.

    The gradients are copied into a bucket, divided, and summed over the ranks. Each time the processor comes from other
    work, as in training: its caches hold other data, and the threads that communicate have to be woken.
    """
    work = torch.randn(256, 256, device=worker.device)
    all_seconds = []
    for size in sizes:
        gradients = torch.randn(size // 4, device=worker.device)
        bucket = torch.empty_like(gradients)
        repeats = max(5, min(100, BYTES_PER_SIZE // size))
        seconds = []
        for _ in range(2 + repeats):
            dist.barrier()
            for _ in range(10):
                work = (work @ work).clamp_(-1, 1)
            synchronize(worker.device)
            start = time.perf_counter()
            bucket.copy_(gradients).div_(worker.world.size)
            dist.all_reduce(bucket)
            synchronize(worker.device)
            seconds.append(time.perf_counter() - start)
        all_seconds.append(seconds[2:])
    return all_seconds


def benchmark_all_reduce(pool: WorkerPool, sizes: tuple[int, ...] = ALL_REDUCE_BYTES) -> AllReduceBenchmark:
    """All-reduces of every size; each time is that of the rank that came last, which did not wait for the others."""
    by_rank = pool.call(time_all_reduces, sizes)
    samples = [
        AllReduceTimes(bytes=size, seconds=[min(times) for times in zip(*(rank[i] for rank in by_rank), strict=True)])
        for i, size in enumerate(sizes)
    ]
    return AllReduceBenchmark(processes=pool.processes, samples=samples)
