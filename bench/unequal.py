"""One slow rank makes all wait: how much do batches in proportion to speed (--balance auto) bring?

    python bench/unequal.py [--recipe cnn-digits] [--batch-size 256] [--processes 2] [--rounds 12] [--steps 20]

The last rank sleeps for each image as long as it needs to compute it when nothing disturbs it: half the speed of the
others. (A sleep leaves its core free, where another process would not.) Equal batches, those that --balance auto
measures, and shares of 2 and 1 take turns in the same processes; the speedup is taken within a round.
"""

from __future__ import annotations

import sys
import time
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path

import torch
import tyro
from torch.nn import functional

from ddp_workbook.analysis.speedup import speedup
from ddp_workbook.analysis.statistics import median_interval, spread_words
from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import choose_threads, describe_environment, synchronize
from ddp_workbook.distributed.ddp import take_communication, unwrap
from ddp_workbook.measurement.workers import TrainingSession, Worker, WorkerPool
from ddp_workbook.recipes import get_recipe
from ddp_workbook.training.balance import given_batch_sizes, loss_weight, measure_batch_sizes
from ddp_workbook.training.loop import train_step

PASSES = 20


@dataclass(frozen=True)
class Options:
    recipe: str = "cnn-digits"
    data_dir: Path = Path("data")
    batch_size: int = 256
    """Images per process and step where the batches are equal."""
    processes: int = 2
    rounds: int = 12
    steps: int = 20


def seconds_per_image(session: TrainingSession) -> float:
    """Shortest time of forward and backward, divided by the images: what disturbs them can only make them longer."""
    model, times = deepcopy(unwrap(session.state.model)), []
    images, labels = next(session.loader.epoch(1))[0]
    for _ in range(PASSES):
        start = time.perf_counter()
        with session.state.precision.autocast():
            loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        times.append(time.perf_counter() - start)
    return min(times) / len(labels)


def begin(worker: Worker, config: TrainConfig) -> list[int]:
    """Build the run on every rank, slow the last one down, and measure as --balance auto does."""
    session = worker.session(config, communicate=True)
    seconds = seconds_per_image(session)
    if worker.world.rank == worker.world.size - 1:
        model = unwrap(session.state.model)
        model.register_forward_pre_hook(lambda _, inputs: time.sleep(seconds * len(inputs[0])))
    worker.barrier()
    return measure_batch_sizes(session.state.model, session.loader, config, session.state.precision)


def train(worker: Worker, config: TrainConfig, steps: int, batch_sizes: list[int] | None) -> float:
    """On every rank: the seconds of so many optimizer steps."""
    session = worker.session(config, communicate=True)
    state, weight = session.state, loss_weight(batch_sizes, worker.world.rank)
    epochs = (session.loader.epoch(number, 0, batch_sizes) for number in count(1))
    worker.barrier()
    start = time.perf_counter()
    for batches in islice(chain.from_iterable(epochs), steps):
        train_step(state.model, batches, state.optimizer, state.precision, config.label_smoothing, weight)
    synchronize(worker.device)
    seconds = time.perf_counter() - start
    take_communication(state.model)  # so that the meter's stamps do not pile up
    return seconds


def main(options: Options) -> None:
    config = replace(get_recipe(options.recipe), data_dir=options.data_dir, batch_size=options.batch_size, device="cpu")
    threads = choose_threads(config.threads, options.processes)
    shares = ":".join(["2"] * (options.processes - 1) + ["1"])
    with WorkerPool("unequal", config, options.processes, threads) as pool:
        ways = {
            "equal": None,
            "auto": pool.call(begin, config)[0],
            shares: given_batch_sizes(replace(config, balance=shares), options.processes),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(options.rounds + 1):
            for name in list(ways)[:: 1 if number % 2 else -1]:
                seconds = max(pool.call(train, config, options.steps, ways[name]))
                if number:  # round 0 is the warm-up
                    rates[name].append(options.steps * config.global_batch(options.processes) / seconds)
    machine = describe_environment(torch.device("cpu"))
    print(
        f"{options.recipe}, {options.processes} processes x {threads} threads, the last one at half speed; "
        f"global batch {config.global_batch(options.processes)}\n{machine.cpu}, {machine.cores} cores, "
        f"torch {machine.torch}; {options.rounds} rounds of {options.steps} steps, {spread_words(options.rounds)}"
    )
    for name, sizes in ways.items():
        images = ":".join(map(str, sizes or [config.batch_size] * options.processes))
        rate, ratio = median_interval(rates[name]), speedup(rates[name], rates["equal"])
        print(f"{name:<8} {images:<12} {rate.text('.0f')} images/s, {ratio.text('.2f')} of equal")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__, args=sys.argv[1:]))
