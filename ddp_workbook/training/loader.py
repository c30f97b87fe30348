"""Per-rank batches: sharding, shuffling and augmentation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from ddp_workbook.config import TrainConfig
from ddp_workbook.distributed.process_group import World
from ddp_workbook.errors import InputError
from ddp_workbook.training.datasets import Dataset, ImageSet

CACHE_VALUES = 2**19  # values (pixels times channels) that fit into a processor's cache
EVALUATION_BATCH = 250  # images; the result does not depend on it

Batch = tuple[Tensor, Tensor]  # images (n, channels, size, size) float32 in channels-last order, labels (n,) int64


def steps_per_epoch(images: int, config: TrainConfig, world: World) -> int:
    """Optimizer steps of an epoch; the incomplete last one is dropped.

    Raises InputError when a rank's share of the images cannot fill one step.
    """
    share = images // world.size
    steps = share // (config.batch_size * config.grad_accum_steps)
    if steps == 0:
        raise InputError(
            f"--batch-size {config.batch_size} x --grad-accum-steps {config.grad_accum_steps} is larger than a "
            f"process's share of {share} training images; use a smaller batch or fewer processes"
        )
    return steps


def stream(seed: int, number: int = 0) -> int:
    """The seed of a run's random numbers no. `number`, below a million: runs with neighbouring seeds share none."""
    return (seed * 1_000_003 + number) % 2**63


class TrainLoader:
    """The training batches of one rank. epoch(n) returns those of epoch n, the same at every call.

    Raises InputError when a rank's share of the images cannot fill one optimizer step.
    """

    def __init__(self, data: Dataset, config: TrainConfig, world: World, device: torch.device) -> None:
        self.sampler = DistributedSampler(
            range(len(data.train)),
            num_replicas=world.size,
            rank=world.rank,
            seed=stream(config.seed),  # the sampler adds the number of the epoch
            drop_last=True,
        )
        self.batch_size, self.grad_accum_steps = config.batch_size, config.grad_accum_steps
        self.steps = steps_per_epoch(len(data.train), config, world)
        self.images = data.train.to(device)
        self.normalize = Normalize(data, device)
        self.padding = config.image_size // 8 if config.augment else 0
        self.flip = config.augment and (data.mirror_keeps_class if config.flip is None else config.flip)
        self.seed, self.world, self.device = config.seed, world, device

    def epoch(self, number: int, start: int = 0, batch_sizes: Sequence[int] | None = None) -> Iterator[list[Batch]]:
        """Optimizer steps of epoch `number` after the first `start`, each a list of `grad_accum_steps` batches.

        `batch_sizes`: images of each rank in a batch; None: the configuration's batch size on every rank. The random
        numbers of the skipped steps are drawn too, so that the others get the same as without skipping.
        """
        size = batch_sizes[self.world.rank] if batch_sizes else self.batch_size
        order = self._unequal_shard(number, batch_sizes) if batch_sizes else self._equal_shard(number)
        generator = torch.Generator().manual_seed(stream(self.seed, number * 1_009 + self.world.rank))
        skipped = start * self.grad_accum_steps
        for _ in range(skipped):
            draw_augmentation(size, self.padding, self.flip, generator)
        batches = self._batches(order[skipped * size :], size, generator)
        for _ in range(start, self.steps):
            yield list(islice(batches, self.grad_accum_steps))

    def _equal_shard(self, number: int) -> Tensor:
        """Indices of this rank's images in the order of epoch `number`, (steps x batches x batch size,) int64."""
        self.sampler.set_epoch(number)  # NEW: without it, every epoch would have the same order
        return torch.tensor(list(self.sampler))[: self.steps * self.grad_accum_steps * self.batch_size]

    def _unequal_shard(self, number: int, batch_sizes: Sequence[int]) -> Tensor:
        """The same where the ranks have different batch sizes.

        A serial run with the whole global batch takes the images in the same order: each of its batches is split.
        """
        everything = DistributedSampler(range(len(self.images)), num_replicas=1, rank=0, seed=self.sampler.seed)
        everything.set_epoch(number)
        joined, rank = sum(batch_sizes), self.world.rank
        order = torch.tensor(list(everything))[: self.steps * self.grad_accum_steps * joined]
        return order.view(-1, joined).split(list(batch_sizes), dim=1)[rank].flatten()

    def _batches(self, order: Tensor, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """The images in this order, `size` at a time, cropped and flipped at random.

        Without augmentation, small images are prepared many batches at a time: for the MLP on MNIST, preparing each
        batch separately takes 5 % of a step.
        """
        fitting = CACHE_VALUES // (size * self.images.images[0].numel())
        batches = 1 if self.padding or self.flip else max(1, fitting)
        for index in order.split(batches * size):
            images = self.normalize(crop_and_flip(self.images.images, index, self.padding, self.flip, generator))
            labels = self.images.labels[index.to(self.device)]
            yield from zip(images.split(size), labels.split(size), strict=True)


class Normalize:
    """uint8 (n, size, size, channels) -> float32 (n, channels, size, size), each channel with mean 0 and deviation 1.

    The result is a view in channels-last order, the order in which the pixels are stored already.
    """

    def __init__(self, data: Dataset, device: torch.device) -> None:
        self.scale = (1 / (255 * data.std)).to(device)
        self.shift = (-data.mean / data.std).to(device)

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels.float().mul_(self.scale).add_(self.shift).permute(0, 3, 1, 2)


def draw_augmentation(
    count: int, padding: int, flip: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `count` images: rows and columns of its shift (count, 1), and whether it is mirrored."""
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5 if flip else torch.zeros(count, 1, dtype=torch.bool)
    return top, left, mirrored


def crop_and_flip(images: Tensor, index: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """images[index], each shifted by up to `padding` pixels with reflected borders and mirrored with probability 1/2.

    One gather does it all: a list of source rows and one of source columns per image, drawn independently. `images`
    is (N, size, size, channels) on any device; `index` (n,) and `generator` are on the CPU. Returns (n, ...) alike.
    """
    if not (padding or flip):
        return images.index_select(0, index.to(images.device, non_blocking=True))
    count, size = len(index), images.shape[1]
    reflect = torch.arange(-padding, size + padding).abs()
    reflect = torch.where(reflect < size, reflect, 2 * (size - 1) - reflect)
    top, left, mirrored = draw_augmentation(count, padding, flip, generator)
    rows, columns = reflect[top + torch.arange(size)], reflect[left + torch.arange(size)]
    if flip:
        columns = torch.where(mirrored, columns.flip(1), columns)
    positions = (index[:, None, None], rows[:, :, None], columns[:, None, :])
    return images[tuple(position.to(images.device, non_blocking=True) for position in positions)]


def evaluation_shard(images: int, world: World) -> range:
    """Indices of the images that this rank tests. Over all ranks each index occurs exactly once.

    Shards may differ by one image, so no collective may happen per batch; the counts are summed at the end.
    """
    return range(world.rank, images, world.size)


def evaluation_batches(data: ImageSet, normalize: Normalize, world: World) -> Iterator[Batch]:
    """This rank's share of the test images, unchanged and in order, in as many batches as the largest share needs.

    So the last batch may be empty. A sharded model gathers its parameters in each forward pass, from all ranks.
    """
    shard = torch.tensor(evaluation_shard(len(data), world), dtype=torch.long)
    largest = math.ceil(len(data) / world.size)
    for start in range(0, largest, EVALUATION_BATCH):
        index = shard[start : start + EVALUATION_BATCH]
        yield normalize(data.images[index.to(data.images.device)]), data.labels[index.to(data.labels.device)]
