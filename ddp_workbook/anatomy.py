"""Where one training step's time goes: data, forward, backward, exposed communication, optimizer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from ddp_workbook.communication import Traffic
from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import Arithmetic, choose_device, describe_environment, synchronize
from ddp_workbook.distributed import gradient_sync
from ddp_workbook.errors import InputError
from ddp_workbook.loader import Batch
from ddp_workbook.models import count_parameters
from ddp_workbook.team import Member, Team
from ddp_workbook.timings import AllReduceTimes, AnatomyRecord, Bucket, StepTimes, SweepRecord, Timeline

WARM_UP_STEPS = 3
SWEEP_BYTES = tuple(2**power for power in (10, 12, 14, 16, 18, 20, 22, 24, 26, 27))  # 1 KiB to 128 MiB
SWEEP_BUDGET = 64 * 2**20  # bytes sent per size, so that small messages are repeated often


def time_steps(
    model: nn.Module,
    batches: Iterator[list[Batch]],
    optimizer: torch.optim.Optimizer,
    amp: Arithmetic,
    smoothing: float,
    steps: int,
    warm_up: int = WARM_UP_STEPS,
) -> tuple[list[StepTimes], list[StepTimes], Timeline]:
    """On one rank, `steps` pairs of a step that averages gradients and one under no_sync, in turns, after `warm_up`.

    The ranks meet before each step, so that no step pays for the one before. Returns the times of both kinds and the
    timeline of the last step that averaged.
    """
    found: dict[bool, list[StepTimes]] = {True: [], False: []}
    timeline = None
    for number in range(2 * (warm_up + steps)):
        averaged = number % 2 == 0
        dist.barrier()
        model.meter.take()
        times, marks = _time_step(model, batches, optimizer, amp, smoothing, averaged)
        if number < 2 * warm_up:
            continue
        if averaged:
            traffic = model.meter.take()
            times = times.model_copy(update={"collectives": traffic.collective_seconds, "waited": traffic.waited[0]})
            timeline = _timeline(marks, traffic)
        found[averaged].append(times)
    return found[True], found[False], timeline


def _timeline(marks: list[float], traffic: Traffic) -> Timeline:
    """Marks and buckets on one clock: the meter's last bucket was ready `waited` seconds before backward ended."""
    start, _, _, backward_end, _ = marks
    first_ready = backward_end - start - traffic.waited[0] - traffic.collectives[-1].ready
    return Timeline(
        marks=[mark - start for mark in marks],
        buckets=[
            Bucket(ready=first_ready + one.ready, done=first_ready + one.done, bytes=one.bytes)
            for one in traffic.collectives
        ],
    )


def _time_step(
    model: nn.Module,
    batches: Iterator[list[Batch]],
    optimizer: torch.optim.Optimizer,
    amp: Arithmetic,
    smoothing: float,
    averaged: bool,
) -> tuple[StepTimes, list[float]]:
    """The training step of engine.train_step, with the clock read between its parts."""
    marks = [time.perf_counter()]

    def mark() -> None:
        synchronize(amp.device)
        marks.append(time.perf_counter())

    [(images, labels)] = next(batches)
    mark()
    optimizer.zero_grad(set_to_none=True)
    with gradient_sync(model, wanted=averaged):
        with amp.autocast():
            loss = functional.cross_entropy(model(images), labels, label_smoothing=smoothing)
        mark()
        amp.scaler.scale(loss).backward()
    mark()
    amp.scaler.step(optimizer)
    amp.scaler.update()
    mark()
    data, forward, backward, step = (after - before for before, after in pairwise(marks))
    return StepTimes(data=data, forward=forward, backward=backward, optimizer=step), marks


def dissect(
    member: Member, config: TrainConfig, steps: int, warm_up: int = WARM_UP_STEPS
) -> tuple[list[StepTimes], list[StepTimes], Timeline]:
    """time_steps on a team's member."""
    job = member.job(replace(config, accumulate=1), True)
    return time_steps(job.model, job.batches, job.optimizer, job.amp, config.label_smoothing, steps, warm_up)


def facts(member: Member, config: TrainConfig) -> tuple[int, str]:
    """Number of parameters, precision."""
    job = member.job(replace(config, accumulate=1), True)
    return count_parameters(job.model), job.amp.precision


def measure_anatomy(config: TrainConfig, team: Team, steps: int) -> AnatomyRecord:
    """The anatomy of `steps` training steps with and without averaging; config.batch_size is that of each process."""
    if steps < 2:
        raise InputError(f"the anatomy needs at least 2 steps, not {steps}")
    answers = team.call(dissect, config, steps)
    parameters, precision = team.call(facts, config)[0]
    averaged, alone, timelines = zip(*answers, strict=True)
    return AnatomyRecord(
        recipe=config.recipe,
        config=config,
        environment=describe_environment(choose_device(config.device, team.processes)),
        processes=team.processes,
        threads=team.threads,
        precision=precision,
        parameters=parameters,
        averaged=averaged,
        alone=alone,
        timeline=timelines[0],
    )


def time_averages(member: Member, sizes: tuple[int, ...]) -> list[list[float]]:
    """Seconds of averaging `size` bytes of gradients as DDP does it, for every size.

    The gradients are copied into a bucket, divided, and summed over the ranks. Each time the processor comes from other
    work, as in training: what lay in its caches is gone, and the threads that communicate have to be woken.
    """
    work = torch.randn(256, 256, device=member.device)
    found = []
    for size in sizes:
        gradients = torch.randn(size // 4, device=member.device)
        bucket = torch.empty_like(gradients)
        repeats = max(5, min(100, SWEEP_BUDGET // size))
        seconds = []
        for _ in range(2 + repeats):
            dist.barrier()
            for _ in range(10):
                work = (work @ work).clamp_(-1, 1)
            synchronize(member.device)
            start = time.perf_counter()
            bucket.copy_(gradients).div_(member.world.size)
            dist.all_reduce(bucket)
            synchronize(member.device)
            seconds.append(time.perf_counter() - start)
        found.append(seconds[2:])
    return found


def sweep(team: Team, sizes: tuple[int, ...] = SWEEP_BYTES) -> SweepRecord:
    """Averages of every size; each time is that of the rank that came last, which did not wait for the others."""
    by_rank = team.call(time_averages, sizes)
    samples = [
        AllReduceTimes(
            bytes=size, seconds=[min(times) for times in zip(*(rank[place] for rank in by_rank), strict=True)]
        )
        for place, size in enumerate(sizes)
    ]
    return SweepRecord(processes=team.processes, samples=samples)
