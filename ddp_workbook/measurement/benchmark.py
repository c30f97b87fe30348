"""Interleaved benchmark: the same training steps, on this machine used in different ways."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch

from ddp_workbook import devices
from ddp_workbook.config import TrainConfig
from ddp_workbook.distributed.ddp import average_buffers, take_communication, unwrap
from ddp_workbook.distributed.processes import MOST_PROCESSES
from ddp_workbook.errors import InputError
from ddp_workbook.measurement.workers import Worker, WorkerPool
from ddp_workbook.records.timing import BenchmarkRecord, Configuration, Interval
from ddp_workbook.specs import MODELS
from ddp_workbook.training.loader import evaluation_batches
from ddp_workbook.training.loop import accuracy, evaluate, train_step
from ddp_workbook.training.models import build_model
from ddp_workbook.training.optim import build_optimizer

WARM_UP_STEPS = 3
PROBE_STEPS = 5
MOST_LOSSES = 200  # kept of each training


def probe(config: TrainConfig, device: torch.device) -> tuple[Interval, Interval]:
    """Images per second of the recipe's network, training and testing random images: median, slowest, fastest step."""
    precision = devices.Precision.of(config, device)
    devices.prepare_cpu(config, local_processes=1)
    model = build_model(config, classes=10).to(device, memory_format=torch.channels_last)
    optimizer = build_optimizer(model, config, processes=1)
    batch_size, size = config.batch_size, config.image_size
    images = torch.randn(batch_size, config.channels, size, size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    batch = images, torch.randint(10, (batch_size,), device=device)
    training = _rates(lambda: train_step(model.train(), [batch], optimizer, precision, 0.0), batch_size, device)
    evaluation = _rates(lambda: evaluate(model, [batch], 10, precision), batch_size, device)
    return training, evaluation


def _rates(step: Callable[[], object], images: int, device: torch.device) -> Interval:
    rates = []
    for number in range(2 + PROBE_STEPS):
        start = time.perf_counter()
        step()
        devices.synchronize(device)
        if number >= 2:
            rates.append(images / (time.perf_counter() - start))
    return Interval(statistics.median(rates), min(rates), max(rates))


def steps_per_round(model: str) -> int:
    """Optimizer steps that make a configuration's part of a round last about half a second on a CPU."""
    return MODELS[model].benchmark_steps


Pools = dict[tuple[int, int], WorkerPool]  # by processes and threads


def plan_configurations(config: TrainConfig, process_counts: Sequence[int], scaling: str) -> list[Configuration]:
    """The serial baselines, then for each process count the processes without and with communication; no rounds yet.

    On a CPU the baselines have one thread, one for each physical core, and one for each logical core, as far as these
    numbers differ: two threads that share a core can be slower than one, so the last is not always the fastest.
    The serial batch is config.batch_size: strong scaling splits it, weak scaling gives all of it to every process.
    """
    device, cores = devices.choose_device(config.device, max(process_counts)), devices.available_cores()
    if device.type != "cpu":
        plans = [("1 process", "serial", 1, devices.choose_threads(config.threads, 1), config.batch_size)]
    else:
        plans = [
            (f"1 process, {threads} thread{'s' if threads > 1 else ''}", "serial", 1, threads, config.batch_size)
            for threads in sorted({1, devices.physical_cores(), cores})  # all cores last: speedup.over_all_cores()
        ]
    for processes in process_counts:
        if not 2 <= processes <= MOST_PROCESSES:
            raise InputError(f"a process count must be from 2 to {MOST_PROCESSES}, not {processes}")
        if scaling == "strong" and config.batch_size % processes:
            raise InputError(
                f"--batch-size {config.batch_size} cannot be split evenly among {processes} processes; choose another "
                f"count, or weak scaling, which gives every process the whole batch"
            )
        batch = config.batch_size // processes if scaling == "strong" else config.batch_size
        threads = devices.choose_threads(config.threads, processes)
        name = f"{processes} processes, {threads} thread{'s' if threads > 1 else ''} each"
        if device.type == "cpu" and processes * threads > cores:
            name += ", oversubscribed"
        plans.append((f"{name}, not communicating", "no-communication", processes, threads, batch))
        plans.append((name, "distributed", processes, threads, batch))
    empty = {"images_per_round": 0, "images_per_second": [], "losses": [], "accuracies": []}
    return [
        Configuration(
            name=name, role=role, processes=processes, threads=threads, batch_size=batch * config.grad_accum_steps,
            **empty,
        )
        for name, role, processes, threads, batch in plans
    ]  # fmt: skip


def time_training(
    worker: Worker, config: TrainConfig, communicate: bool, steps: int | None, seed: int | None
) -> tuple[float, list[float]]:
    """On every rank: (seconds, loss of each step) of `steps` optimizer steps, or of an epoch (None).

    A seed restarts the training with new weights; without one it goes on.
    """
    session = worker.session(config, communicate)
    if seed is not None:
        session.restart(seed)
    worker.barrier()
    start = time.perf_counter()
    outputs = [session.step() for _ in range(steps or session.loader.steps)]
    devices.synchronize(worker.device)
    seconds = time.perf_counter() - start
    take_communication(session.state.model)  # so that the meter's stamps do not pile up
    return seconds, torch.stack([torch.stack([output.loss for output in step]).mean() for step in outputs]).tolist()


def measure_accuracy(worker: Worker, config: TrainConfig) -> float:
    """On every rank: test accuracy of the model that the ranks train together."""
    session = worker.session(config, True)
    model = session.state.model
    average_buffers(model)
    batches = evaluation_batches(session.data.test.to(worker.device), session.loader.normalize, worker.world)
    tested = evaluate(unwrap(model), batches, len(session.data.classes), session.state.precision)
    model.train()
    return accuracy(tested.confusion)


def require_rounds(rounds: int) -> None:
    """Raise InputError for fewer than two: one measurement has no spread."""
    if rounds < 2:
        raise InputError(f"--repeats must be at least 2, not {rounds}: one measurement has no spread")


@contextmanager
def worker_pools(config: TrainConfig, configurations: Sequence[Configuration]) -> Iterator[Pools]:
    """A worker pool for each number of processes and threads, all alive at once."""
    with ExitStack() as stack:
        pools: Pools = {}
        for each in configurations:
            size = (each.processes, each.threads)
            if size not in pools:
                pools[size] = stack.enter_context(WorkerPool(each.name, config, *size))
        yield pools


def _call(pools: Pools, record: BenchmarkRecord, each: Configuration, function: Callable, *arguments: object) -> list:
    """The function's result on every rank of a configuration, with the settings that it has there."""
    config = replace(record.config, batch_size=each.batch_size // record.config.grad_accum_steps)
    return pools[each.processes, each.threads].call(function, config, *arguments)


def _train(
    pools: Pools, record: BenchmarkRecord, each: Configuration, steps: int | None, seed: int | None
) -> tuple[float, list[float]]:
    """(seconds of the slowest rank, loss of each step as the mean over the ranks)."""
    answers = _call(pools, record, each, time_training, each.role != "no-communication", steps, seed)
    losses = zip(*(losses for _, losses in answers), strict=True)
    return max(seconds for seconds, _ in answers), [sum(values) / len(values) for values in losses]


def measure_together(
    records: Sequence[BenchmarkRecord],
    rounds: int,
    on_part: Callable[[str, float], None] = lambda *_: None,
    on_round: Callable[[list[BenchmarkRecord]], None] = lambda _: None,
) -> list[BenchmarkRecord]:
    """Continue benchmarks of one network to `rounds` rounds; all their configurations take turns.

    In a round every configuration trains from new weights: the record's steps, or its config's epochs. Whole trainings
    take turns epoch by epoch and end with a test. Where the benchmarks share a configuration, such as a serial
    baseline, it trains once in a round and counts in each. With new_processes each round has processes of its own: how
    fast they are also differs from launch to launch. `on_part(name, images per second)` is called after every part,
    `on_round(records)` after each round.
    """
    require_rounds(rounds)
    records, left = list(records), range(records[0].rounds, rounds)
    for numbers in [[number] for number in left] if records[0].new_processes else [left]:
        with _warmed_up_pools(records) as pools:
            for number in numbers:
                records = _add_round(records, pools, number, on_part)
                on_round(records)
    return records


@contextmanager
def _warmed_up_pools(records: Sequence[BenchmarkRecord]) -> Iterator[Pools]:
    """The pools of all configurations, each of which has taken its first steps."""
    with worker_pools(records[0].config, [each for record in records for each in record.configurations]) as pools:
        for record, each in _distinct(records).values():
            _train(pools, record, each, WARM_UP_STEPS, None)
        yield pools


def _key(record: BenchmarkRecord, each: Configuration) -> tuple:
    """What decides how long a configuration's steps take; a hook does so only where gradients are averaged."""
    hook = record.config.comm_hook if each.role == "distributed" else None
    return each.role, each.processes, each.threads, each.batch_size, hook


def _distinct(records: Sequence[BenchmarkRecord]) -> dict[tuple, tuple[BenchmarkRecord, Configuration]]:
    distinct: dict[tuple, tuple[BenchmarkRecord, Configuration]] = {}
    for record in records:
        for each in record.configurations:
            distinct.setdefault(_key(record, each), (record, each))
    return distinct


def _add_round(
    records: Sequence[BenchmarkRecord], pools: Pools, number: int, on_part: Callable[[str, float], None]
) -> list[BenchmarkRecord]:
    """The records with one more round of every configuration."""
    turns = list(_distinct(records).items())
    first = number % len(turns)  # no configuration always goes first
    turns = turns[first:] + turns[:first]
    seconds: dict[tuple, float] = dict.fromkeys(dict(turns), 0.0)
    losses: dict[tuple, list[float]] = {key: [] for key, _ in turns}
    whole = records[0].steps is None
    for part in range(records[0].config.epochs if whole else 1):
        for key, (record, each) in turns:
            seed = record.config.seed + number if part == 0 else None
            took, new = _train(pools, record, each, record.steps, seed)
            seconds[key] += took
            losses[key] += new
            on_part(each.name, len(new) * each.global_batch / took)
    longer = {}
    for key, (record, each) in turns:
        images = len(losses[key]) * each.global_batch
        tested = whole and each.role != "no-communication"
        accuracies = _call(pools, record, each, measure_accuracy)[:1] if tested else []
        longer[key] = (images, images / seconds[key], thin(losses[key]), accuracies)
    return [
        record.model_copy(
            update={"configurations": [_longer(each, *longer[_key(record, each)]) for each in record.configurations]}
        )
        for record in records
    ]


def _longer(each: Configuration, images: int, rate: float, losses: list[float], accuracies: list) -> Configuration:
    """The configuration with one more round."""
    update = {
        "images_per_round": images,
        "images_per_second": [*each.images_per_second, rate],
        "losses": [*each.losses, losses],
        "accuracies": [*each.accuracies, *accuracies],
    }
    return each.model_copy(update=update)


def empty_record(
    config: TrainConfig, process_counts: Sequence[int], steps: int | None, scaling: str, new_processes: bool = False
) -> BenchmarkRecord:
    """A record without rounds. `new_processes`: each round is to have its own, which takes longer."""
    device = devices.choose_device(config.device, max(process_counts))
    return BenchmarkRecord(
        recipe=config.recipe,
        config=config,
        environment=devices.describe_environment(device),
        precision=devices.choose_precision(config.precision, device),
        scaling=scaling,
        steps=steps,
        new_processes=new_processes,
        configurations=plan_configurations(config, process_counts, scaling),
    )


def thin(losses: Sequence[float], most: int = MOST_LOSSES) -> list[float]:
    """At most `most` means of equally many consecutive losses; a remainder at the end is left out."""
    width = -(-len(losses) // most)
    return [statistics.fmean(losses[i : i + width]) for i in range(0, len(losses) - width + 1, width)]
