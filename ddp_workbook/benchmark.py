"""Short trainings in turns: the same work, spread over the machine in different ways."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import (
    Arithmetic,
    available_cores,
    choose_device,
    choose_precision,
    choose_threads,
    describe_environment,
    set_threads,
    synchronize,
)
from ddp_workbook.distributed import average_buffers, communication_since, unwrap
from ddp_workbook.engine import accuracy, build_optimizer, evaluate, train_step
from ddp_workbook.errors import InputError
from ddp_workbook.launch import MOST_PROCESSES
from ddp_workbook.loader import evaluation_batches
from ddp_workbook.models import build_model
from ddp_workbook.scaling import Interval
from ddp_workbook.team import Member, Team
from ddp_workbook.timings import Arrangement, BenchmarkRecord, Role

WARM_UP_STEPS = 3
SHORT_STEPS = 50  # a round of a small network: its steps take milliseconds, and the first after a pause takes longer
LONG_STEPS = {"resnet50": 3}
MOST_LOSSES = 200  # kept of each training


def probe(config: TrainConfig, device: torch.device, steps: int = 5) -> tuple[Interval, Interval]:
    """Images per second of the recipe's network, training and testing random images: median, slowest, fastest step."""
    amp = Arithmetic(device, choose_precision(config.precision, device))
    set_threads(config, local_processes=1)
    model = build_model(config, classes=10).to(device, memory_format=torch.channels_last)
    optimizer = build_optimizer(model, config, processes=1)
    batch_size, size = config.batch_size, config.image_size
    images = torch.randn(batch_size, config.channels, size, size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    batch = images, torch.randint(10, (batch_size,), device=device)
    training = _rates(lambda: train_step(model.train(), [batch], optimizer, amp, 0.0), batch_size, steps, device)
    evaluation = _rates(lambda: evaluate(model, [batch], 10, amp), batch_size, steps, device)
    return training, evaluation


def steps_per_round(model: str) -> int:
    """Enough optimizer steps for a part of a round to take about a second on a CPU."""
    return LONG_STEPS.get(model, SHORT_STEPS)


def _rates(step: Callable[[], object], images: int, steps: int, device: torch.device) -> Interval:
    rates = []
    for number in range(2 + steps):
        start = time.perf_counter()
        step()
        synchronize(device)
        if number >= 2:
            rates.append(images / (time.perf_counter() - start))
    return Interval(statistics.median(rates), min(rates), max(rates))


@dataclass(frozen=True)
class Plan:
    """One arrangement of the work. A bound is the same processes without any communication."""

    name: str
    role: Role
    processes: int
    threads: int
    config: TrainConfig


def arrangements(config: TrainConfig, process_counts: Sequence[int], scaling: str) -> list[Plan]:
    """The serial baselines, then for each process count the bound and the distributed run.

    The serial batch is config.batch_size: strong scaling shares it out, weak scaling gives it to every process.
    """
    device, cores = choose_device(config.device, max(process_counts)), available_cores()
    serial = [(1, "1 process, 1 thread")] + [(cores, f"1 process, {cores} threads")] * (cores > 1)
    if device.type != "cpu":
        serial = [(choose_threads(config.threads, 1), "1 process")]
    plans = [Plan(name, "serial", 1, threads, config) for threads, name in serial]
    for processes in process_counts:
        if not 2 <= processes <= MOST_PROCESSES:
            raise InputError(f"a process count must be from 2 to {MOST_PROCESSES}, not {processes}")
        if scaling == "strong" and config.batch_size % processes:
            raise InputError(
                f"--batch-size {config.batch_size} cannot be shared out evenly among {processes} processes; choose "
                f"another count, or weak scaling, which gives every process the whole batch"
            )
        batch = config.batch_size // processes if scaling == "strong" else config.batch_size
        threads = choose_threads(config.threads, processes)
        name = f"{processes} processes, {threads} thread" + "s" * (threads > 1) + " each"
        if device.type == "cpu" and processes * threads > cores:
            name += ", oversubscribed"
        shared = replace(config, batch_size=batch)
        plans += [
            Plan(f"{name}, not communicating", "bound", processes, threads, shared),
            Plan(name, "distributed", processes, threads, shared),
        ]
    return plans


def train(
    member: Member, config: TrainConfig, communicate: bool, steps: int | None, seed: int | None
) -> tuple[float, list[float]]:
    """On every rank: (seconds, loss of each step) of some optimizer steps, or of an epoch; a seed starts afresh."""
    job = member.job(config, communicate)
    if seed is not None:
        job.restart(seed)
    member.meet()
    start = time.perf_counter()
    outcomes = [job.step() for _ in range(steps or job.loader.steps)]
    synchronize(member.device)
    seconds = time.perf_counter() - start
    communication_since(job.model)  # read, so that the meter's stamps do not pile up
    return seconds, torch.stack([torch.stack([one.loss for one in step]).mean() for step in outcomes]).tolist()


def test(member: Member, config: TrainConfig) -> float:
    """On every rank: test accuracy of the model that the ranks train together."""
    job = member.job(config, True)
    average_buffers(job.model)
    batches = evaluation_batches(job.data.test.to(member.device), job.loader.normalise, member.world)
    confusion, _ = evaluate(unwrap(job.model), batches, len(job.data.classes), job.amp)
    job.model.train()
    return accuracy(confusion)


def require_rounds(rounds: int) -> None:
    """Raise InputError for fewer than two: one measurement has no spread."""
    if rounds < 2:
        raise InputError(f"--repeats must be at least 2, not {rounds}: one measurement has no spread")


def measure(
    config: TrainConfig,
    process_counts: Sequence[int],
    rounds: int,
    steps: int | None,
    scaling: str = "strong",
    earlier: BenchmarkRecord | None = None,
    on_part: Callable[[str, float], None] = lambda *_: None,
    on_round: Callable[[BenchmarkRecord], None] = lambda _: None,
) -> BenchmarkRecord:
    """Train every arrangement `rounds` times from fresh weights, all in turns; `steps` steps, or None: config.epochs.

    Whole trainings take turns epoch by epoch and end with a test. `on_part(name, images per second)` hears of every
    part, `on_round` of the record after each round; `earlier` is such a record, to go on from.
    """
    require_rounds(rounds)
    plans = arrangements(config, process_counts, scaling)
    record = earlier or empty_record(config, plans, steps, scaling)
    parts = config.epochs if steps is None else 1
    with ExitStack() as stack:
        teams: dict[tuple[int, int], Team] = {}
        for plan in plans:
            size = (plan.processes, plan.threads)
            if size not in teams:
                teams[size] = stack.enter_context(Team(plan.name, config, *size))
        for plan in plans:
            teams[plan.processes, plan.threads].call(train, plan.config, plan.role != "bound", WARM_UP_STEPS, None)
        for number in range(record.rounds, rounds):
            turn = number % len(plans)  # nobody always goes first
            seconds, losses = [0.0] * len(plans), [[] for _ in plans]
            for part in range(parts):
                for place in [*range(turn, len(plans)), *range(turn)]:
                    plan = plans[place]
                    team = teams[plan.processes, plan.threads]
                    seed = config.seed + number if part == 0 else None
                    answers = team.call(train, plan.config, plan.role != "bound", steps, seed)
                    took, found = max(answer[0] for answer in answers), zip(*(a[1] for a in answers), strict=True)
                    losses[place] += [sum(values) / len(values) for values in found]
                    seconds[place] += took
                    images = (len(losses[place]) // (part + 1)) * plan.config.global_batch(plan.processes)
                    on_part(plan.name, images / took)
            tests = [
                teams[plan.processes, plan.threads].call(test, plan.config)[0]
                if steps is None and plan.role != "bound"
                else None
                for plan in plans
            ]
            record = add_round(record, seconds, losses, tests)
            on_round(record)
    return record


def empty_record(config: TrainConfig, plans: list[Plan], steps: int | None, scaling: str) -> BenchmarkRecord:
    """A record of no rounds yet."""
    device = choose_device(config.device, max(plan.processes for plan in plans))
    return BenchmarkRecord(
        recipe=config.recipe,
        config=config,
        environment=describe_environment(device),
        precision=choose_precision(config.precision, device),
        scaling=scaling,
        steps=steps,
        arrangements=[
            Arrangement(
                name=plan.name,
                role=plan.role,
                processes=plan.processes,
                threads=plan.threads,
                batch_size=plan.config.batch_size * plan.config.accumulate,
                images_per_round=0,
                images_per_second=[],
                losses=[],
                accuracies=[],
            )
            for plan in plans
        ],
    )


def thin(losses: Sequence[float], most: int = MOST_LOSSES) -> list[float]:
    """At most `most` means of equally many consecutive losses; a remainder at the end is left out."""
    width = -(-len(losses) // most)
    return [statistics.fmean(losses[i : i + width]) for i in range(0, len(losses) - width + 1, width)]


def add_round(
    record: BenchmarkRecord, seconds: list[float], losses: list[list[float]], tests: list[float | None]
) -> BenchmarkRecord:
    """The record with one more round."""
    longer = [
        one.model_copy(
            update={
                "images_per_round": len(loss) * one.global_batch,
                "images_per_second": [*one.images_per_second, len(loss) * one.global_batch / took],
                "losses": [*one.losses, thin(loss)],
                "accuracies": one.accuracies if tested is None else [*one.accuracies, tested],
            }
        )
        for one, took, loss, tested in zip(record.arrangements, seconds, losses, tests, strict=True)
    ]
    return record.model_copy(update={"arrangements": longer})
