"""What all contestants share: the jobs, the data on disk, the plain model, and how a run reports itself.

A contestant is a script, started as a new process for every measurement (bench/compare.py), which trains two epochs
of a job and tests after each: the first epoch warms up, the second is measured. It prints one line of JSON. With
--epochs N it trains N epochs on the whole data set instead (bench/time_to_accuracy.py).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import psutil
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, StepLR
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from ddp_workbook.config import TrainConfig
from ddp_workbook.recipes import get_recipe
from ddp_workbook.specs import DATASETS
from ddp_workbook.training.cpu_layers import Dropout, MatmulConv2d
from ddp_workbook.training.models import build_model

SHORT_EPOCHS = 2
TEST_BATCH = 250


@dataclass(frozen=True)
class Job:
    """A recipe, and how many of its images an epoch has here: whole epochs of all contestants would take a day."""

    recipe: str
    train_images: int
    test_images: int


JOBS = {
    "mlp": Job("mlp-mnist", 19_200, 3_000),
    "cnn": Job("cnn-mnist", 6_400, 2_000),
    "resnet50": Job("resnet50-cifar10", 1_920, 500),
}


@dataclass(frozen=True)
class Options:
    """One measurement: `batch_size` is that of each process, `workers` those of each DataLoader."""

    job: Job
    config: TrainConfig
    batch_size: int
    workers: int
    precision: str
    compiled: bool
    data_dir: Path


def read_options() -> Options:
    """Flags that compare.py gives every contestant."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", choices=JOBS, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compile", action="store_true", help="by torch.compile with its defaults")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--epochs", type=int)
    found = parser.parse_args()
    job = JOBS[found.job]
    if found.epochs:
        job = Job(job.recipe, *DATASETS[get_recipe(job.recipe).dataset].images)
    config = replace(
        get_recipe(job.recipe),
        batch_size=found.batch_size,
        precision=found.precision,
        data_dir=found.data_dir,
        epochs=found.epochs or SHORT_EPOCHS,
        device="cpu",
    )
    return Options(job, config, found.batch_size, found.workers, found.precision, found.compile, found.data_dir)


def plain_model(options: Options) -> nn.Module:
    """The recipe's network with torch's own layers: what a reader of torchvision's documentation would build."""
    torch.manual_seed(0)
    model = build_model(options.config, 10)
    for module in model.modules():
        module.__class__ = {MatmulConv2d: nn.Conv2d, Dropout: nn.Dropout}.get(type(module), type(module))
    if options.config.model == "cnn":
        for place in (1, 4):  # ReLU before pooling, as tutorials have it
            model[place], model[place + 1] = model[place + 1], model[place]
    return model


def plain_optimizer(model: nn.Module, options: Options) -> torch.optim.Optimizer:
    """The recipe's optimizer as torch's documentation builds it."""
    config = options.config
    if config.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, nesterov=True
    )


def plain_schedule(optimizer: torch.optim.Optimizer, options: Options, steps: int) -> LRScheduler:
    """The recipe's schedule as torch has it, to be stepped after each of an epoch's steps."""
    config = options.config
    if config.schedule == "onecycle":
        return OneCycleLR(
            optimizer, config.lr, total_steps=config.epochs * steps, pct_start=config.warmup, cycle_momentum=False
        )
    return StepLR(optimizer, config.step_epochs * steps, config.step_gamma if config.schedule == "step" else 1.0)


def image_sets(options: Options) -> tuple[Subset, Subset]:
    """torchvision's data sets with torchvision's transforms, cut to the job's size."""
    if options.config.dataset == "cifar10":
        normal = transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
        crop = transforms.RandomCrop(32, padding=4, padding_mode="reflect")
        train = transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), normal])
        kind = datasets.CIFAR10
    else:
        normal = transforms.Normalize((0.1307,), (0.3081,))
        train = transforms.Compose([transforms.ToTensor(), normal])
        kind = datasets.MNIST
    test = transforms.Compose([transforms.ToTensor(), normal])
    return (
        Subset(kind(options.data_dir, train=True, transform=train), range(options.job.train_images)),
        Subset(kind(options.data_dir, train=False, transform=test), range(options.job.test_images)),
    )


def data_loader(images: Subset, options: Options, train: bool, sampler: object = None) -> DataLoader:
    """torch's loader; workers stay alive between epochs, as its documentation advises."""
    return DataLoader(
        images,
        batch_size=options.batch_size if train else TEST_BATCH,
        shuffle=train and sampler is None,
        sampler=sampler,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
        drop_last=train,
    )


class Stopwatch:
    """Reads the clock where a contestant says it is, and prints the result at the end."""

    def __init__(self) -> None:
        self.process_start = psutil.Process().create_time()
        self.launched = float(os.environ.get("COMPARE_LAUNCHED", self.process_start))
        self.first_step: float | None = None
        self.epochs: list[dict[str, float]] = []

    def epoch_begins(self) -> None:
        self.epochs.append({"begin": time.perf_counter()})

    def step_done(self) -> None:
        """After every optimizer step; only the first one is kept."""
        if self.first_step is None:
            self.first_step = time.time() - self.launched

    def training_done(self, images: int) -> None:
        """`images`: how many all processes have trained on in this epoch."""
        self.epochs[-1] |= {"trained": time.perf_counter(), "images": images}

    def epoch_done(self, accuracy: float) -> None:
        self.epochs[-1] |= {"done": time.perf_counter(), "accuracy": accuracy}

    def report(self) -> None:
        """One line of JSON; on a launcher's rank 0 only."""
        if int(os.environ.get("RANK", 0)) != 0:
            return
        last = self.epochs[-1]
        seconds = accumulate(one["done"] - one["begin"] for one in self.epochs)
        print(
            json.dumps(
                {
                    "first_step_seconds": self.first_step,
                    "images_per_second": last["images"] / (last["trained"] - last["begin"]),
                    "epoch_seconds": last["done"] - last["begin"],
                    "accuracy": last["accuracy"],
                    "seconds_and_accuracy": list(zip(seconds, (one["accuracy"] for one in self.epochs), strict=True)),
                    "peak_memory_bytes": peak_memory(),
                }
            )
        )


def peak_memory() -> int:
    """Largest resident memory of this process, in bytes; loader workers come on top and are not counted."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
