"""One epoch of batches for one rank: which images, in which order, changed how."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from ddp_workbook.config import TrainConfig
from ddp_workbook.datasets import Dataset, ImageSet
from ddp_workbook.distributed import World
from ddp_workbook.errors import InputError

AT_ONCE = 2**19  # values (pixels times channels) that fit into a processor's cache
EVALUATION_BATCH = 250  # images; the result does not depend on it

Batch = tuple[Tensor, Tensor]  # images (n, channels, size, size) float32 in channels-last order, labels (n,) int64


class TrainLoader:
    """The training batches of one rank; `epoch(n)` gives those of epoch n, the same whenever it is asked.

    Raises InputError when a rank's share of the images cannot fill one optimizer step.
    """

    def __init__(self, data: Dataset, config: TrainConfig, world: World, device: torch.device) -> None:
        self.sampler = DistributedSampler(
            range(len(data.train)),
            num_replicas=world.size,
            rank=world.rank,
            seed=config.seed % 2**31,
            drop_last=True,
        )
        self.batch_size, self.accumulate = config.batch_size, config.accumulate
        self.steps = len(self.sampler) // (self.batch_size * self.accumulate)
        if self.steps == 0:
            raise InputError(
                f"--batch-size {self.batch_size} x --accumulate {self.accumulate} is larger than a process's share of "
                f"{len(self.sampler)} training images; use a smaller batch or fewer processes"
            )
        self.images = data.train.to(device)
        self.normalise = Normaliser(data, device)
        self.padding = config.image_size // 8 if config.augment else 0
        self.flip = config.augment and (data.mirror_keeps_class if config.flip is None else config.flip)
        self.seed, self.world, self.device = config.seed, world, device

    def epoch(self, number: int, start: int = 0) -> Iterator[list[Batch]]:
        """Optimizer steps of epoch `number` after the first `start`, each a list of `accumulate` batches.

        What the skipped steps would have drawn is drawn, so that the others get the same.
        """
        self.sampler.set_epoch(number)  # NEW: without it, every epoch would have the same order
        order = torch.tensor(list(self.sampler))[: self.steps * self.accumulate * self.batch_size]
        draws = torch.Generator().manual_seed((self.seed * 1_000_003 + number * 1_009 + self.world.rank) % 2**63)
        skipped = start * self.accumulate
        for _ in range(skipped):
            draw_changes(self.batch_size, self.padding, self.flip, draws)
        batches = self._batches(order[skipped * self.batch_size :], draws)
        for _ in range(start, self.steps):
            yield list(islice(batches, self.accumulate))

    def _batches(self, order: Tensor, draws: torch.Generator) -> Iterator[Batch]:
        """The images in this order, cropped and flipped by fresh draws.

        Small ones are made many batches at a time where nothing is drawn: for the MLP on MNIST, making each by itself
        takes a twentieth of a step.
        """
        fitting = AT_ONCE // (self.batch_size * self.images.images[0].numel())
        at_once = 1 if self.padding or self.flip else max(1, fitting)
        for index in order.split(at_once * self.batch_size):
            images = self.normalise(crop_and_flip(self.images.images, index, self.padding, self.flip, draws))
            labels = self.images.labels[index.to(self.device)]
            yield from zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True)


class Normaliser:
    """uint8 (n, size, size, channels) -> float32 (n, channels, size, size) with mean 0 and deviation 1 per channel.

    The result is a view in channels-last order, which is how the pixels lie in memory already.
    """

    def __init__(self, data: Dataset, device: torch.device) -> None:
        self.scale = (1 / (255 * data.std)).to(device)
        self.shift = (-data.mean / data.std).to(device)

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels.float().mul_(self.scale).add_(self.shift).permute(0, 3, 1, 2)


def draw_changes(count: int, padding: int, flip: bool, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `count` images: rows and columns of its shift (count, 1), and whether it is mirrored."""
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=draws)
    mirrored = torch.rand(count, 1, generator=draws) < 0.5 if flip else torch.zeros(count, 1, dtype=torch.bool)
    return top, left, mirrored


def crop_and_flip(images: Tensor, index: Tensor, padding: int, flip: bool, draws: torch.Generator) -> Tensor:
    """images[index], each shifted by up to `padding` pixels with reflected borders and mirrored with chance 1/2.

    One gather does it all: per image a list of source rows and one of source columns, drawn independently. `images`
    is (N, size, size, channels) on any device; `index` (n,) and `draws` are on the CPU. Returns (n, ...) like images.
    """
    if not (padding or flip):
        return images.index_select(0, index.to(images.device, non_blocking=True))
    count, size = len(index), images.shape[1]
    reflect = torch.arange(-padding, size + padding).abs()
    reflect = torch.where(reflect < size, reflect, 2 * (size - 1) - reflect)
    top, left, mirrored = draw_changes(count, padding, flip, draws)
    rows, columns = reflect[top + torch.arange(size)], reflect[left + torch.arange(size)]
    if flip:
        columns = torch.where(mirrored, columns.flip(1), columns)
    places = (index[:, None, None], rows[:, :, None], columns[:, None, :])
    return images[tuple(place.to(images.device, non_blocking=True) for place in places)]


def evaluation_shard(images: int, world: World) -> range:
    """Indices that this rank tests. Over all ranks each index occurs exactly once: no padding, none dropped.

    Shards may differ by one image, so nothing collective may happen per batch; the counts are reduced at the end.
    """
    return range(world.rank, images, world.size)


def evaluation_batches(data: ImageSet, normalise: Normaliser, world: World) -> Iterator[Batch]:
    """This rank's share of the test images, unchanged and in order."""
    shard = torch.tensor(evaluation_shard(len(data), world), dtype=torch.long)
    for index in shard.split(EVALUATION_BATCH) if len(shard) else ():
        yield normalise(data.images[index.to(data.images.device)]), data.labels[index.to(data.labels.device)]
