"""Short interleaved timings of the same training step, spread over the machine in different ways."""

from __future__ import annotations

import gc
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist

from ddp_workbook.config import TrainConfig
from ddp_workbook.datasets import load_dataset
from ddp_workbook.devices import (
    Arithmetic,
    available_cores,
    choose_backend,
    choose_device,
    choose_precision,
    choose_threads,
    describe_environment,
    set_threads,
    synchronize,
)
from ddp_workbook.distributed import World, bind_to_loopback, wrap_ddp
from ddp_workbook.engine import build_optimizer, evaluate, train_step
from ddp_workbook.errors import InputError
from ddp_workbook.launch import LaunchError
from ddp_workbook.loader import Batch, TrainLoader
from ddp_workbook.models import build_model
from ddp_workbook.record import Arrangement, BenchmarkRecord
from ddp_workbook.scaling import Interval

WARM_UP_STEPS = 3
SECONDS_TO_STOP = 20


def probe(batch_size: int, device: torch.device, steps: int = 5) -> tuple[Interval, Interval]:
    """Images per second of a ResNet-50 in training and evaluation, on random images: median, slowest, fastest step."""
    config = TrainConfig(batch_size=batch_size)
    amp = Arithmetic(device, choose_precision(config.precision, device))
    set_threads(config, local_processes=1)
    model = build_model(config, classes=10).to(device, memory_format=torch.channels_last)
    optimizer = build_optimizer(model, config, processes=1)
    images = torch.randn(batch_size, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    batch = images, torch.randint(10, (batch_size,), device=device)
    training = _rates(lambda: train_step(model.train(), [batch], optimizer, amp, 0.0), batch_size, steps, device)
    evaluation = _rates(lambda: evaluate(model, [batch], 10, amp), batch_size, steps, device)
    return training, evaluation


def _rates(step: Callable[[], object], images: int, steps: int, device: torch.device) -> Interval:
    rates = []
    for number in range(2 + steps):
        start = time.perf_counter()
        step()
        synchronize(device)
        if number >= 2:
            rates.append(images / (time.perf_counter() - start))
    return Interval(statistics.median(rates), min(rates), max(rates))


class Team:
    """Processes that train one model together, step by step, and sleep in between: idle, they take no CPU time."""

    def __init__(self, name: str, config: TrainConfig, processes: int, threads: int) -> None:
        self.name, self.processes, self.threads = name, processes, threads
        self.config = replace(config, threads=threads)
        self.folder = tempfile.TemporaryDirectory(prefix="team-")
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self.workers = []
        for rank in range(processes):
            ours, theirs = context.Pipe()
            world = World(rank, processes, rank, processes, launched=processes > 1)
            meeting_point = str(Path(self.folder.name) / "store")
            worker = context.Process(target=_work, args=(self.config, world, meeting_point, theirs), daemon=True)
            worker.start()
            theirs.close()
            self.pipes.append(ours)
            self.workers.append(worker)

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self.pipes:
            pipe.close()  # a worker takes the end of its pipe as the end of its work
        for worker in self.workers:
            worker.join(SECONDS_TO_STOP)
            worker.kill()
        self.folder.cleanup()

    def images_per_second(self, steps: int) -> float:
        """Rate of the whole team over `steps` optimizer steps, by the clock of rank 0."""
        try:
            for pipe in self.pipes:
                pipe.send(steps)
            answers = [pipe.recv() for pipe in self.pipes]
        except (EOFError, OSError) as error:
            raise LaunchError(f"a process of {self.name!r} died; its own message stands above") from error
        for answer in answers:
            if isinstance(answer, str):
                raise LaunchError(f"{self.name!r}: {answer}")
        return steps * self.config.global_batch(self.processes) / answers[0]


def _work(config: TrainConfig, world: World, meeting_point: str, pipe: Connection) -> None:
    """A team member's life, and an orderly end: the model first, then the group (see distributed.process_group)."""
    try:
        _answer(config, world, meeting_point, pipe)
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        pipe.close()
    except Exception as error:  # reported to the parent, which raises it
        pipe.send(f"rank {world.rank}: {type(error).__name__}: {error}")
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()


def _answer(config: TrainConfig, world: World, meeting_point: str, pipe: Connection) -> None:
    """Set up once, then time as many steps as each message asks for."""
    device = choose_device(config.device, world.size, world.local_rank)
    amp = Arithmetic(device, choose_precision(config.precision, device))
    set_threads(config, world.local_size)
    data = load_dataset(config)
    loader = TrainLoader(data, config, world, device)
    torch.manual_seed(config.seed)
    model = build_model(config, len(data.classes)).to(device, memory_format=torch.channels_last)
    if world.launched:
        bind_to_loopback()
        backend = choose_backend(config.backend, device, world.local_size)
        store = dist.FileStore(meeting_point, world.size)
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size)
        model = wrap_ddp(model, device, config.gradient_compression)
    optimizer = build_optimizer(model, config, world.size)
    batches = _endless(loader)
    while True:
        steps = pipe.recv()
        start = time.perf_counter()
        for _ in range(steps):
            train_step(model, next(batches), optimizer, amp, config.label_smoothing)
        synchronize(device)
        pipe.send(time.perf_counter() - start)


def _endless(loader: TrainLoader) -> Iterator[list[Batch]]:
    for epoch in count(1):
        yield from loader.epoch(epoch)


def arrangements(config: TrainConfig, processes: int) -> list[tuple[str, int, int]]:
    """(name, processes, threads each): the serial baselines, and last the distributed run. All use one global batch."""
    if config.batch_size % processes:
        raise InputError(f"--batch-size {config.batch_size} cannot be shared out evenly among {processes} processes")
    device = choose_device(config.device, processes)
    cores, each = available_cores(), choose_threads(config.threads, processes)
    if device.type != "cpu":
        return [("1 process", 1, cores), (f"{processes} processes", processes, each)]
    serial = [("1 process, 1 thread", 1, 1)]
    if cores > 1:
        serial.append((f"1 process, {cores} threads", 1, cores))
    threads = "1 thread" if each == 1 else f"{each} threads"
    excess = ", oversubscribed" if processes * each > cores else ""
    return [*serial, (f"{processes} processes, {threads} each{excess}", processes, each)]


def measure(
    config: TrainConfig,
    processes: int,
    steps: int,
    rounds: int,
    on_round: Callable[[int, dict[str, float]], None] = lambda *_: None,
) -> BenchmarkRecord:
    """Time the serial baselines and the distributed run in turns. `config.batch_size` is the global batch of all."""
    plan = arrangements(config, processes)
    rates: dict[str, list[float]] = {name: [] for name, *_ in plan}
    with ExitStack() as stack:
        teams = []
        for name, size, threads in plan:
            shared = replace(config, batch_size=config.batch_size // size)
            teams.append(stack.enter_context(Team(name, shared, size, threads)))
        for team in teams:
            team.images_per_second(WARM_UP_STEPS)
        for number in range(rounds):
            turn = number % len(teams)  # nobody always goes first
            for team in teams[turn:] + teams[:turn]:
                rates[team.name].append(team.images_per_second(steps))
            on_round(number + 1, {name: found[-1] for name, found in rates.items()})
    device = choose_device(config.device, processes)
    return BenchmarkRecord(
        recipe=config.recipe,
        environment=describe_environment(device),
        precision=choose_precision(config.precision, device),
        gradient_compression=config.gradient_compression,
        steps=steps,
        rounds=rounds,
        arrangements=[
            Arrangement(
                name=name,
                processes=size,
                threads=threads,
                batch_size=config.batch_size // size,
                images_per_second=rates[name],
            )
            for name, size, threads in plan
        ],
    )
