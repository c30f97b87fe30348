"""One slow rank makes all wait: how much do batches in proportion to speed (--balance auto) bring?

    python bench/unequal.py [--recipe cnn-digits] [--processes 2] [--rounds 12] [--steps 20]

The last rank computes forward and backward of every batch twice, so it has half the speed of the others. Equal batches
and the ones that --balance measures take turns in the same processes; the speedup is taken within a round.
"""

from __future__ import annotations

import sys
import time
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn

from ddp_workbook.analysis.speedup import speedup
from ddp_workbook.analysis.statistics import median_interval, spread_words
from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import choose_threads, describe_environment, synchronize
from ddp_workbook.distributed.ddp import take_communication, unwrap
from ddp_workbook.measurement.workers import Worker, WorkerPool
from ddp_workbook.recipes import get_recipe
from ddp_workbook.training.balance import loss_weight, measure_batch_sizes
from ddp_workbook.training.loop import train_step


@dataclass(frozen=True)
class Options:
    recipe: str = "cnn-digits"
    data_dir: Path = Path("data")
    processes: int = 2
    rounds: int = 12
    steps: int = 20


def halve_speed(model: nn.Module) -> None:
    """From now on each forward pass first does the work of a whole forward and backward pass for nothing."""
    twin = deepcopy(model)

    def work(_: nn.Module, images: tuple[Tensor]) -> None:
        twin(*images).sum().backward()

    model.register_forward_pre_hook(work)


def begin(worker: Worker, config: TrainConfig) -> list[int]:
    """Build the run on every rank, slow the last one down, and measure as --balance auto does."""
    session = worker.session(config, communicate=True)
    state = session.state
    if worker.world.rank == worker.world.size - 1:
        halve_speed(unwrap(state.model))
    worker.barrier()
    return measure_batch_sizes(state.model, session.loader, config, state.precision)


def train(worker: Worker, config: TrainConfig, epoch: int, steps: int, batch_sizes: list[int] | None) -> float:
    """On every rank: the seconds of so many optimizer steps."""
    session = worker.session(config, communicate=True)
    state, weight = session.state, loss_weight(batch_sizes, worker.world.rank)
    worker.barrier()
    start = time.perf_counter()
    for batches in islice(session.loader.epoch(epoch, 0, batch_sizes), steps):
        train_step(state.model, batches, state.optimizer, state.precision, config.label_smoothing, weight)
    synchronize(worker.device)
    seconds = time.perf_counter() - start
    take_communication(state.model)  # so that the meter's stamps do not pile up
    return seconds


def main(options: Options) -> None:
    config = replace(get_recipe(options.recipe), data_dir=options.data_dir, device="cpu")
    threads = choose_threads(config.threads, options.processes)
    with WorkerPool("unequal", config, options.processes, threads) as pool:
        sizes = pool.call(begin, config)[0]
        ways = {"equal": None, "balanced": sizes}
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(options.rounds + 1):
            for name in list(ways)[:: 1 if number % 2 else -1]:
                seconds = max(pool.call(train, config, number + 1, options.steps, ways[name]))
                if number:  # round 0 is the warm-up
                    rates[name].append(options.steps * config.global_batch(options.processes) / seconds)
    machine = describe_environment(torch.device("cpu"))
    print(
        f"{options.recipe}, {options.processes} processes x {threads} threads, the last one at half speed; global batch "
        f"{config.global_batch(options.processes)}\n{machine.cpu}, {machine.cores} cores, torch {machine.torch}; "
        f"{options.rounds} rounds of {options.steps} steps"
    )
    spread = spread_words(options.rounds)
    for name, images in {"equal": [config.batch_size] * options.processes, "balanced": sizes}.items():
        print(
            f"{name:<9}{':'.join(map(str, images)):<12} {median_interval(rates[name]).text('.0f')} images/s ({spread})"
        )
    print(f"speedup of balanced over equal: {speedup(rates['balanced'], rates['equal']).text('.2f')} ({spread})")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__, args=sys.argv[1:]))
