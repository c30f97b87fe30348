"""Processes that stay together: they work when they are called, and in between they sleep and take no CPU time."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ddp_workbook.config import TrainConfig
from ddp_workbook.datasets import Dataset, load_dataset
from ddp_workbook.devices import Arithmetic, choose_backend, choose_device, choose_precision, set_threads
from ddp_workbook.distributed import World, bind_to_loopback, unwrap, wrap_ddp
from ddp_workbook.engine import build_optimizer, build_schedule, train_step
from ddp_workbook.launch import LaunchError
from ddp_workbook.loader import Batch, TrainLoader
from ddp_workbook.models import build_model
from ddp_workbook.tally import Outcome

SECONDS_TO_STOP = 20
IMPORTED_LATER = ["torch._dynamo", "sklearn.datasets"]  # by an optimizer's first step, and for the digits


def process_context() -> BaseContext:
    """How to start processes: forks of a server that has imported torch once, or fresh interpreters on Windows.

    A rank that imports torch for itself needs seconds. A fork of this process would take over its threads' locks and
    its GPU; the server has neither, only the imported modules.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *IMPORTED_LATER])
    return context


class Job:
    """One model in training on one rank: its weights, its optimizer, and batches without end."""

    def __init__(
        self, config: TrainConfig, data: Dataset, world: World, device: torch.device, communicate: bool
    ) -> None:
        self.config, self.data, self.world = config, data, world
        self.amp = Arithmetic(device, choose_precision(config.precision, device))
        self.loader = TrainLoader(data, config, world, device)
        model = build_model(config, len(data.classes)).to(device, memory_format=torch.channels_last)
        self.model = wrap_ddp(model, device, config) if communicate and world.launched else model
        self.restart(config.seed)

    def restart(self, seed: int) -> None:
        """Fresh weights, the same on every rank, and the first batch of the first epoch."""
        torch.manual_seed(seed)
        fresh = build_model(self.config, len(self.data.classes))
        unwrap(self.model).load_state_dict(fresh.state_dict())
        self.optimizer = build_optimizer(self.model.train(), self.config, self.world.size)
        self.schedule = build_schedule(self.optimizer, self.config, self.loader.steps)
        self.batches = self._endless()
        torch.manual_seed(seed + self.world.rank)  # dropout draws on each rank for itself

    def step(self) -> list[Outcome]:
        """One optimizer step; returns what train_step does."""
        outcomes = train_step(self.model, next(self.batches), self.optimizer, self.amp, self.config.label_smoothing)
        self.schedule.step()
        return outcomes

    def _endless(self) -> Iterator[list[Batch]]:
        for epoch in count(1):
            yield from self.loader.epoch(epoch)


class Member:
    """What a process of a team keeps between two calls. Alone in its team, it has no process group."""

    def __init__(self, config: TrainConfig, world: World, meeting_point: str) -> None:
        self.world, self.threads = world, config.threads
        self.device = choose_device(config.device, world.size, world.local_rank)
        set_threads(config, world.local_size)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if world.launched:
            bind_to_loopback()
            backend = choose_backend(config.backend, self.device, world.local_size)
            store = dist.FileStore(meeting_point, world.size)
            dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size)
        self.jobs: dict[tuple[TrainConfig, bool], Job] = {}
        self.datasets: dict[tuple, Dataset] = {}

    def job(self, config: TrainConfig, communicate: bool) -> Job:
        """The job with this configuration; made when it is first asked for."""
        if (config, communicate) not in self.jobs:
            images = (config.dataset, config.data_dir, config.image_size, config.channels)
            if images not in self.datasets:
                self.datasets[images] = load_dataset(config)
            self.jobs[config, communicate] = Job(config, self.datasets[images], self.world, self.device, communicate)
        return self.jobs[config, communicate]

    def forget(self) -> None:
        """Free all jobs."""
        self.jobs.clear()
        gc.collect()

    def meet(self) -> None:
        """Wait for all ranks."""
        if self.world.launched:
            dist.barrier()


class Team:
    """`processes` ranks of `threads` threads each on this machine; a team of one has no process group."""

    def __init__(self, name: str, config: TrainConfig, processes: int, threads: int) -> None:
        self.name, self.processes, self.threads = name, processes, threads
        self.folder = tempfile.TemporaryDirectory(prefix="team-")
        context = process_context()
        self.pipes: list[Connection] = []
        self.workers = []
        for rank in range(processes):
            ours, theirs = context.Pipe()
            world = World(rank, processes, rank, processes, launched=processes > 1)
            arguments = (replace(config, threads=threads), world, str(Path(self.folder.name) / "store"), theirs)
            worker = context.Process(target=_work, args=arguments, daemon=True)
            worker.start()
            theirs.close()
            self.pipes.append(ours)
            self.workers.append(worker)

    def __enter__(self) -> Team:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        for pipe in self.pipes:
            pipe.close()  # a member takes the end of its pipe as the end of its work
        for worker in self.workers:
            worker.join(0 if failed else SECONDS_TO_STOP)
            worker.kill()
            worker.join()
        self.folder.cleanup()

    def call(self, function: Callable[..., Any], *arguments: object) -> list[Any]:
        """function(member, *arguments) on every rank at once; the answers in rank order."""
        try:
            for pipe in self.pipes:
                pipe.send((function, arguments))
            answers: dict[Connection, Any] = {}
            while len(answers) < len(self.pipes):
                for pipe in wait([pipe for pipe in self.pipes if pipe not in answers]):
                    answers[pipe] = pipe.recv()
                    if isinstance(answers[pipe], _Failure):  # the others may wait for this rank for ever
                        raise LaunchError(f"{self.name!r}: {answers[pipe].message}")
        except (EOFError, OSError) as error:
            raise LaunchError(f"a process of {self.name!r} died; its own message stands above") from error
        return [answers[pipe] for pipe in self.pipes]


class _Failure:
    """A member's error on its way to the caller."""

    def __init__(self, message: str) -> None:
        self.message = message


def _work(config: TrainConfig, world: World, meeting_point: str, pipe: Connection) -> None:
    """A member's life, and an orderly end: the models first, then the group (see distributed.process_group)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle
    try:
        _answer(config, world, meeting_point, pipe)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pipe.close()
    except Exception as error:  # reported to the caller, which raises it
        pipe.send(_Failure(f"rank {world.rank}: {type(error).__name__}: {error}"))
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()


def _answer(config: TrainConfig, world: World, meeting_point: str, pipe: Connection) -> None:
    member = Member(config, world, meeting_point)
    while True:
        function, arguments = pipe.recv()
        pipe.send(function(member, *arguments))
