"""Unequal batches for unequal ranks: a global batch split in proportion to shares, given or measured.

All ranks wait for the slowest in every step. With fewer images it is done when the others are. The step stays what it
was: loss_weight() makes DDP's mean over the ranks the mean over the images.

Exact, but for rounding: gradients and weights, with label smoothing and accumulation too. Not exact, as with equal
shares: BatchNorm normalizes with the images of one rank, and the ranks draw dropout and crops for themselves.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from copy import deepcopy
from statistics import median

import torch
from torch import nn
from torch.nn import functional

from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import Precision, synchronize
from ddp_workbook.distributed.collectives import gather_objects
from ddp_workbook.distributed.ddp import unwrap
from ddp_workbook.errors import InputError
from ddp_workbook.specs import MODELS
from ddp_workbook.training.loader import TrainLoader

TIMED_SECONDS, TIMED_PASSES = 2.0, 5  # at least, of the slowest rank


def split_batch(images: int, weights: Sequence[float], least: int = 1) -> list[int]:
    """Whole numbers in proportion to the weights, each at least `least`, their sum `images`.

    `images` must be at least `least` for each weight. What rounding leaves goes to whoever is furthest below its share.
    """
    exact = [images * weight / sum(weights) for weight in weights]
    sizes = [max(least, math.floor(share)) for share in exact]
    while sum(sizes) < images:
        sizes[max(range(len(sizes)), key=lambda rank: exact[rank] - sizes[rank])] += 1
    while sum(sizes) > images:
        larger = [rank for rank in range(len(sizes)) if sizes[rank] > least]
        sizes[max(larger, key=lambda rank: sizes[rank] - exact[rank])] -= 1
    return sizes


def given_batch_sizes(config: TrainConfig, processes: int) -> list[int] | None:
    """Images of each rank in a batch by the shares in --balance; None for equal ones, or while none are measured.

    Raises InputError for one process, or when there is not one share for each process.
    """
    if config.balance == "equal":
        return None
    if processes == 1:
        raise InputError(f"--balance {config.balance} needs several processes; start them with torchrun")
    if config.balance == "auto":
        return None
    shares = [int(share) for share in config.balance.split(":")]
    if len(shares) != processes:
        raise InputError(f"--balance {config.balance} must have a share for each of the {processes} processes")
    return _split(config, shares)


def measure_batch_sizes(model: nn.Module, loader: TrainLoader, config: TrainConfig, precision: Precision) -> list[int]:
    """Images of each rank in a batch, in proportion to its speed; the same on every rank. All ranks call it together.

    A rank's speed is taken from the median time of forward and backward with config.batch_size images, without
    communication: a disturbance of less than half the time does not change it. All ranks compute for equally long, as
    in training: those of one machine share its memory. They use a copy of the model; the model itself, its BatchNorm
    statistics and the random state stay as they are.
    """
    copy = deepcopy(unwrap(model)).train()
    images, labels = next(loader.epoch(1))[0]

    def time_pass() -> float:
        synchronize(loader.device)
        start = time.perf_counter()
        with precision.autocast():
            loss = functional.cross_entropy(copy(images), labels, label_smoothing=config.label_smoothing)
        loss.backward()
        synchronize(loader.device)
        return time.perf_counter() - start

    with torch.random.fork_rng([loader.device] if loader.device.type == "cuda" else []):
        time_pass()  # the first pass allocates memory
        longest = max(gather_objects(time_pass()))
        times: list[float] = []
        while sum(times) < max(TIMED_SECONDS, TIMED_PASSES * longest):
            times.append(time_pass())
    return _split(config, [1 / seconds for seconds in gather_objects(median(times))])


def loss_weight(batch_sizes: Sequence[int] | None, rank: int) -> float:
    """This rank's batch size divided by the mean of all; 1 where they are equal.

    DDP adds up the gradients and divides them by the number of ranks. With these weights that is the gradient of the
    mean loss over all images: for n ranks with b of B images, the sum of (n b / B) x (mean over b) / n.
    """
    return batch_sizes[rank] * len(batch_sizes) / sum(batch_sizes) if batch_sizes else 1.0


def _split(config: TrainConfig, weights: Sequence[float]) -> list[int]:
    """BatchNorm may see a single pixel of each image; it has no variance in one image alone."""
    least = min(2 if MODELS[config.model].batch_norm else 1, config.batch_size)
    return split_batch(config.batch_size * len(weights), weights, least)
