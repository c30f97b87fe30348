"""The training loop against the bare step: what do batches, augmentation, metrics and schedule cost?

    python bench/training_loop.py [--recipe resnet50-cifar10] [--rounds 9] [--steps 8]

Bare step: the same model, optimizer and precision, with one batch already on the device; forward, loss, backward and
optimizer step, nothing else. Both take turns in one process, a few steps each; ratios are taken within a round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path

import tyro
from torch.nn import functional

from ddp_workbook.analysis.speedup import speedup
from ddp_workbook.analysis.statistics import median_interval, spread_words
from ddp_workbook.devices import choose_device, describe_environment, prepare_cpu, synchronize
from ddp_workbook.distributed.process_group import World
from ddp_workbook.recipes import DEFAULT, get_recipe
from ddp_workbook.training.datasets import load_dataset
from ddp_workbook.training.loader import TrainLoader
from ddp_workbook.training.loop import train_epoch
from ddp_workbook.training.state import PartialEpoch, build_state


@dataclass(frozen=True)
class Options:
    recipe: str = DEFAULT
    data_dir: Path = Path("data")
    rounds: int = 9
    steps: int = 8


class ShortLoader(TrainLoader):
    """The recipe's loader with epochs of a few steps; each one continues where the last one ended."""

    def shorten(self, steps: int) -> ShortLoader:
        self.limit = steps
        self.endless = chain.from_iterable(map(super().epoch, count(1)))
        return self

    def epoch(self, number: int, start: int = 0, batch_sizes: Sequence[int] | None = None):
        return islice(self.endless, self.limit)


def main(options: Options) -> None:
    config = replace(get_recipe(options.recipe), data_dir=options.data_dir)
    device = choose_device(config.device)
    threads = prepare_cpu(config, local_processes=1)
    data = load_dataset(config)
    loader = ShortLoader(data, config, World(), device).shorten(options.steps)
    state = build_state(config, data, World(), device)
    model, optimizer, precision = state.model.train(), state.optimizer, state.precision
    [(images, labels)] = next(loader.endless)

    def bare() -> None:
        for _ in range(options.steps):
            optimizer.zero_grad(set_to_none=True)
            with precision.autocast():
                loss = functional.cross_entropy(model(images), labels, label_smoothing=config.label_smoothing)
            precision.scaler.scale(loss).backward()
            precision.scaler.step(optimizer)
            precision.scaler.update()

    def loop() -> None:
        state.partial = PartialEpoch()
        train_epoch(state, loader, config)

    def rate(work: Callable[[], None]) -> float:
        start = time.perf_counter()
        work()
        synchronize(device)
        return options.steps * config.batch_size / (time.perf_counter() - start)

    rate(bare), rate(loop)  # warm-up
    rates: dict[str, list[float]] = {"bare step": [], "training loop": []}
    for number in range(options.rounds):
        order = [("bare step", bare), ("training loop", loop)]
        for name, work in order if number % 2 else order[::-1]:
            rates[name].append(rate(work))
    environment = describe_environment(device)
    print(
        f"{options.recipe}, batch {config.batch_size}, {precision.name}, {threads} threads, torch {environment.torch},"
    )
    machine = f"{environment.accelerator or environment.cpu}, {environment.cores} cores, torch {environment.torch}"
    print(f"{machine}; {options.rounds} rounds")
    for name, samples in rates.items():
        print(f"{name:<14} {median_interval(samples).text('.0f')} images/s")
    share = speedup(rates["training loop"], rates["bare step"])
    print(f"share of the bare step: {share.text('.3f')} ({spread_words(options.rounds)})")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
