"""Image data sets as uint8 tensors in memory."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.nn import functional

from ddp_workbook.config import TrainConfig
from ddp_workbook.errors import InputError
from ddp_workbook.records.run import DatasetInfo
from ddp_workbook.specs import DATASETS

LARGEST_MNIST = 48_000_000  # bytes; the largest of its files has 47,040,016


@dataclass(frozen=True)
class ImageSet:
    """Images (N, height, width, channels) as uint8, and their labels (N,) as int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> ImageSet:
        return ImageSet(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """Training and test images. `mean` and `std` (channels,) belong to the training pixels, as shares of 255.

    `note` is a line about files that were left out.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    mean: Tensor
    std: Tensor
    note: str | None = None

    @property
    def mirror_keeps_class(self) -> bool:
        """A mirrored image keeps its class."""
        return DATASETS[self.name].mirror_keeps_class

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all pixels and labels."""
        digest = hashlib.sha256()
        for part in (self.train, self.test):
            digest.update(part.images.numpy())
            digest.update(part.labels.numpy())
        return digest.hexdigest()

    def info(self) -> DatasetInfo:
        """Facts for the record."""
        return DatasetInfo(
            name=self.name,
            classes=list(self.classes),
            train_images=len(self.train),
            test_images=len(self.test),
            fingerprint=self.fingerprint,
        )


def load_dataset(config: TrainConfig) -> Dataset:
    """Read the config's data set, and download it first if it is not there.

    Raises InputError with the folder and the fix when the files are missing and cannot be downloaded, or when the
    number of images is not that of the data set.
    """
    classes, train, test, note = _READERS[config.dataset](config)
    spec, found = DATASETS[config.dataset], (len(train), len(test))
    if spec.images and found != spec.images:
        raise InputError(
            f"damaged data: {spec.title} has {spec.images[0]} training and {spec.images[1]} test images, but there are "
            f"{found[0]} and {found[1]} in {config.data_dir / (spec.folder or '')}; move them away to download them"
        )
    mean, std = _pixel_statistics(train.images)
    return Dataset(config.dataset, classes, train, test, mean, std, note)


class Parts(NamedTuple):
    """What a reader returns; `note` as in Dataset."""

    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    note: str | None = None


def _read_digits(config: TrainConfig) -> Parts:
    """1,797 handwritten digits of 8x8 pixels, grey levels 0 to 16, part of scikit-learn; a fifth is the test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    grey = torch.from_numpy(raw.images).float().mul_(255 / 16).unsqueeze(-1)
    images, labels = _fit_square(grey, config), torch.from_numpy(raw.target).long()
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=raw.target, random_state=0)
    classes = tuple(str(name) for name in raw.target_names)
    return Parts(classes, ImageSet(images[train], labels[train]), ImageSet(images[test], labels[test]))


def _read_mnist(config: TrainConfig) -> Parts:
    from torchvision.datasets import MNIST

    train, test = _fetch(MNIST, config.data_dir, "MNIST", "MNIST/raw/*-ubyte")
    if not all(map(_is_mnist, (train, test))):
        raise InputError(f"damaged data: {config.data_dir / 'MNIST'} is not MNIST; move it away to download it")

    def convert(part: MNIST) -> ImageSet:
        return ImageSet(_fit_square(part.data.unsqueeze(-1), config), part.targets.long())

    return Parts(tuple(str(digit) for digit in range(10)), convert(train), convert(test))


def _is_mnist(part: object) -> bool:
    return part.data.shape == (len(part.targets), 28, 28) and part.targets.unique().tolist() == list(range(10))


def _damaged_mnist(data_dir: Path) -> list[str]:
    """By content: torchvision knows the checksums of the packed files only."""
    from torchvision.datasets import MNIST

    bad = ["training set", "test set"]
    for name, train, count in zip(tuple(bad), (True, False), DATASETS["mnist"].images, strict=True):
        with suppress(Exception):  # torchvision reads a damaged file with asserts, numpy and struct
            part = MNIST(str(data_dir), train=train)
            if len(part.targets) == count and _is_mnist(part):
                bad.remove(name)
    return bad


def _read_cifar10(config: TrainConfig) -> Parts:
    from torchvision.datasets import CIFAR10

    train, test = _fetch(CIFAR10, config.data_dir, "cifar-10-batches-py", "cifar-10-batches-py/*_batch*")

    def convert(part: CIFAR10) -> ImageSet:
        return ImageSet(_fit_square(torch.from_numpy(part.data), config), torch.tensor(part.targets))

    return Parts(tuple(train.classes), convert(train), convert(test))


def _damaged_cifar10(data_dir: Path) -> list[str]:
    """By the MD5 checksums that torchvision knows."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    folder = data_dir / CIFAR10.base_folder
    sums = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
    return [name for name, md5 in sums if not check_integrity(str(folder / name), md5)]


def _read_imagefolder(config: TrainConfig) -> Parts:
    from ddp_workbook.training.image_folder import read_image_folder

    classes, train, test, note = read_image_folder(config)
    return Parts(classes, ImageSet(*train), ImageSet(*test), note)


_READERS: dict[str, Callable[[TrainConfig], Parts]] = {
    "digits": _read_digits,
    "mnist": _read_mnist,
    "cifar10": _read_cifar10,
    "imagefolder": _read_imagefolder,
}
DAMAGE_CHECKS: dict[str, Callable[[Path], list[str]]] = {"mnist": _damaged_mnist, "cifar10": _damaged_cifar10}
"""Checks of downloaded data sets: what of them is missing or damaged below the data folder; [] when complete."""


def _fetch(reader: type, data_dir: Path, folder: str, expected: str) -> tuple:
    """torchvision's training and test part. Only one of several processes downloads."""
    with suppress(*_UNREADABLE):  # missing or damaged
        return _open_parts(reader, data_dir)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(data_dir / f".{folder}.lock"):
            if not (data_dir / folder).exists():
                _download(reader, data_dir, folder)
            return _open_parts(reader, data_dir)
    except _UNREADABLE as error:
        _remove_if_empty(data_dir, data_dir / f".{folder}.lock")
        present = "damaged" if (data_dir / folder).exists() else "missing"
        raise InputError(
            f"{present} data: expected {data_dir / expected}, and could not download it ({error}); copy the files "
            f"there, pass --data-dir, or use --recipe resnet50-digits, which needs no download"
        ) from error


_UNREADABLE = (RuntimeError, OSError, ValueError, LookupError, AssertionError)  # torchvision's on a damaged file


def _open_parts(reader: type, data_dir: Path) -> tuple:
    """Raises OSError, too, for a file that is far too large for MNIST, whose files have no checksums."""
    large = [path for path in data_dir.glob("MNIST/raw/*-ubyte") if path.stat().st_size > LARGEST_MNIST]
    if large and reader.__name__ == "MNIST":
        raise OSError(f"{large[0]} is larger than any file of MNIST")
    return tuple(reader(str(data_dir), train=train, download=False) for train in (True, False))


def _download(reader: type, data_dir: Path, folder: str) -> None:
    """Into a temporary folder, renamed when complete: an interrupted download leaves nothing behind."""
    with tempfile.TemporaryDirectory(dir=data_dir, prefix=f".{folder}.") as temporary:
        print(f"downloading {folder} into {data_dir}", flush=True)
        reader(temporary, train=True, download=True)
        (Path(temporary) / folder).rename(data_dir / folder)


def _remove_if_empty(data_dir: Path, lock: Path) -> None:
    with suppress(OSError):  # a folder that holds anything stays
        lock.unlink(missing_ok=True)
        data_dir.rmdir()


def _fit_square(images: Tensor, config: TrainConfig) -> Tensor:
    """(N, h, w, c) -> (N, size, size, channels) as uint8: scaled if necessary, grey repeated for colour models."""
    size = config.image_size
    if images.shape[1:3] != (size, size):
        pixels = images.permute(0, 3, 1, 2).float()
        pixels = functional.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
        images = pixels.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return images.to(torch.uint8).expand(-1, -1, -1, config.channels).contiguous()


def _pixel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, as shares of 255."""
    channels = images.shape[-1]
    total, squares = torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    for part in images.split(1000):  # a float copy of all images would take four times their memory
        pixels = part.reshape(-1, channels).to(torch.float32) / 255
        total += pixels.sum(0, dtype=torch.float64)
        squares += pixels.square().sum(0, dtype=torch.float64)
    count = images.numel() / channels
    mean = total / count
    std = (squares / count - mean**2).clamp(min=1e-6).sqrt()
    return mean.float(), std.float()
