"""A pool of persistent worker processes, one per rank, that run functions on request and sleep in between."""

from __future__ import annotations

import gc
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import choose_backend, choose_device, prepare_cpu
from ddp_workbook.distributed.launch import LaunchError
from ddp_workbook.distributed.process_group import World, bind_to_loopback
from ddp_workbook.distributed.processes import first_death, started
from ddp_workbook.distributed.quiet_gloo import silence_gloo
from ddp_workbook.errors import InputError
from ddp_workbook.training.datasets import Dataset, load_dataset
from ddp_workbook.training.loader import Batch, TrainLoader
from ddp_workbook.training.loop import train_step
from ddp_workbook.training.metrics import StepOutput
from ddp_workbook.training.state import build_state, restart

SECONDS_TO_STOP = 20


class TrainingSession:
    """One model in training on one rank, with batches without end."""

    def __init__(self, config: TrainConfig, data: Dataset, world: World, device: torch.device) -> None:
        self.config, self.data, self.world = config, data, world
        self.loader = TrainLoader(data, config, world, device)
        self.state = build_state(config, data, world, device)
        self.restart(config.seed)

    def restart(self, seed: int) -> None:
        """New weights, the same on every rank, and the first batch of the first epoch."""
        restart(self.state, self.config, self.data, self.world, seed)
        self.state.model.train()
        self.batches = self._endless()

    def step(self) -> list[StepOutput]:
        """One optimizer step; returns what train_step() returns."""
        state = self.state
        outputs = train_step(
            state.model, next(self.batches), state.optimizer, state.precision, self.config.label_smoothing
        )
        state.schedule.step()
        return outputs

    def _endless(self) -> Iterator[list[Batch]]:
        for epoch in count(1):
            yield from self.loader.epoch(epoch)


class Worker:
    """What a worker process keeps between two calls. The only worker of a pool has no process group."""

    def __init__(self, config: TrainConfig, world: World, store: str) -> None:
        self.world = world
        self.device = choose_device(config.device, world.size, world.local_rank)
        prepare_cpu(config, world.local_size)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if world.launched:
            bind_to_loopback()
            backend = choose_backend(config.backend, self.device, world.local_size)
            file_store = dist.FileStore(store, world.size)
            silence_gloo()
            dist.init_process_group(backend, store=file_store, rank=world.rank, world_size=world.size)
        self.sessions: dict[tuple[TrainConfig, bool], TrainingSession] = {}
        self.datasets: dict[tuple, Dataset] = {}

    def session(self, config: TrainConfig, communicate: bool) -> TrainingSession:
        """The training session with this configuration, created at the first call; with DDP if it communicates."""
        if (config, communicate) not in self.sessions:
            images = (config.dataset, config.data_dir, config.image_size, config.channels)
            if images not in self.datasets:
                self.datasets[images] = load_dataset(config)
            world = replace(self.world, launched=self.world.launched and communicate)
            session = TrainingSession(config, self.datasets[images], world, self.device)
            self.sessions[config, communicate] = session
        return self.sessions[config, communicate]

    def forget(self) -> None:
        """Free all sessions."""
        self.sessions.clear()
        gc.collect()

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world.launched:
            dist.barrier()


class WorkerPool:
    """`processes` ranks of this machine with `threads` threads each; a single rank has no process group."""

    def __init__(self, name: str, config: TrainConfig, processes: int, threads: int) -> None:
        self.name, self.processes, self.threads = name, processes, threads
        self.config = replace(config, threads=threads)
        self.stack = ExitStack()

    def __enter__(self) -> WorkerPool:
        folder = self.stack.enter_context(tempfile.TemporaryDirectory(prefix="workers-"))
        worlds = [
            World(rank, self.processes, rank, self.processes, self.processes > 1) for rank in range(self.processes)
        ]
        arguments = [(self.config, world, str(Path(folder) / "store")) for world in worlds]
        self.pipes, self.workers = self.stack.enter_context(started(_work, arguments, SECONDS_TO_STOP))
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.__exit__(*error)

    def call(self, function: Callable[..., Any], *arguments: object) -> list[Any]:
        """function(worker, *arguments) on every rank at once; the results in rank order.

        Raises the InputError of a rank; LaunchError with the error of the rank that failed first in another way.
        """
        results: dict[Connection, Any] = {}
        try:
            for pipe in self.pipes:
                pipe.send((function, arguments))
            while len(results) < len(self.pipes):
                for pipe in wait([pipe for pipe in self.pipes if pipe not in results]):
                    works, results[pipe] = pipe.recv()
                    if isinstance(results[pipe], InputError):
                        raise results[pipe]
                    if not works:  # the others may wait for this rank for ever
                        raise LaunchError(f"{self.name!r}: {first_death(self.workers) or results[pipe]}")
        except (EOFError, OSError):
            raise LaunchError(f"{self.name!r}: {first_death(self.workers, self.pipes.index(pipe))}") from None
        return [results[pipe] for pipe in self.pipes]


def _work(config: TrainConfig, world: World, store: str, pipe: Connection) -> None:
    """A worker from start to end. It ends in order: the models first, then the group (see process_group)."""
    try:
        _serve(config, world, store, pipe)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the caller has closed its end
        pipe.close()
    except InputError as error:
        pipe.send((False, error))
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        pipe.send((False, f"rank {world.rank}: {type(error).__name__}: {error}"))
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()


def _serve(config: TrainConfig, world: World, store: str, pipe: Connection) -> None:
    worker = Worker(config, world, store)
    while True:
        function, arguments = pipe.recv()
        pipe.send((True, function(worker, *arguments)))
