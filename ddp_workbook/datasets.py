"""Image data sets as uint8 tensors in memory."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from filelock import FileLock
from torch import Tensor
from torch.nn import functional

from ddp_workbook.config import TrainConfig
from ddp_workbook.errors import InputError
from ddp_workbook.record import LONGEST_NAME, MOST_CLASSES, DatasetInfo, is_plain

LARGEST_MNIST = 48_000_000  # bytes; the largest of its files has 47,040,016
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # PIL goes by content: an EPS named .png would run Ghostscript


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
    """Training and test images. `mean` and `std` (channels,) belong to the training pixels, as shares of 255."""

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    mirror_keeps_class: bool
    mean: Tensor
    std: Tensor

    def info(self) -> DatasetInfo:
        """Facts for the record, with a SHA-256 over everything that was read."""
        digest = hashlib.sha256()
        for part in (self.train, self.test):
            digest.update(part.images.numpy())
            digest.update(part.labels.numpy())
        return DatasetInfo(
            name=self.name,
            classes=list(self.classes),
            train_images=len(self.train),
            test_images=len(self.test),
            fingerprint=digest.hexdigest(),
        )


def load_dataset(config: TrainConfig) -> Dataset:
    """Read the config's data set, downloading it first if it has to.

    Raises InputError with the folder and the mend when the files are not there and cannot be fetched.
    """
    classes, train, test = _READERS[config.dataset](config)
    mean, std = _pixel_statistics(train.images)
    return Dataset(config.dataset, classes, train, test, config.dataset in ("cifar10", "imagefolder"), mean, std)


Parts = tuple[tuple[str, ...], ImageSet, ImageSet]


def _read_digits(config: TrainConfig) -> Parts:
    """1,797 handwritten digits of 8x8 pixels, grey levels 0 to 16, kept by scikit-learn; a fifth is the test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    grey = torch.from_numpy(raw.images).float().mul_(255 / 16).unsqueeze(-1)
    images, labels = _fit_square(grey, config), torch.from_numpy(raw.target).long()
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=raw.target, random_state=0)
    classes = tuple(str(name) for name in raw.target_names)
    return classes, ImageSet(images[train], labels[train]), ImageSet(images[test], labels[test])


def _read_mnist(config: TrainConfig) -> Parts:
    from torchvision.datasets import MNIST

    train, test = _fetch(MNIST, config.data_dir, "MNIST", "MNIST/raw/*-ubyte")
    for part in (train, test):
        agree = part.data.shape == (len(part.targets), 28, 28) and part.targets.unique().tolist() == list(range(10))
        if not agree:
            raise InputError(f"damaged data: {config.data_dir / 'MNIST'} is not MNIST; move it away to download it")

    def convert(part: MNIST) -> ImageSet:
        return ImageSet(_fit_square(part.data.unsqueeze(-1), config), part.targets.long())

    return tuple(str(digit) for digit in range(10)), convert(train), convert(test)


def _read_cifar10(config: TrainConfig) -> Parts:
    from torchvision.datasets import CIFAR10

    train, test = _fetch(CIFAR10, config.data_dir, "cifar-10-batches-py", "cifar-10-batches-py/*_batch*")

    def convert(part: CIFAR10) -> ImageSet:
        return ImageSet(_fit_square(torch.from_numpy(part.data), config), torch.tensor(part.targets))

    return tuple(train.classes), convert(train), convert(test)


def _read_imagefolder(config: TrainConfig) -> Parts:
    """A tree train/<class>/*, test/<class>/*; each image is scaled and centre-cropped to a square."""
    from torchvision.datasets import ImageFolder

    parts = {}
    for name in ("train", "test"):
        folder = config.data_dir / name
        _require_plain_tree(folder, config.data_dir.resolve())
        try:
            parts[name] = ImageFolder(str(folder))
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} must hold one folder of images per class ({error})") from error
    if parts["train"].classes != parts["test"].classes:
        odd = sorted(set(parts["train"].classes) ^ set(parts["test"].classes))
        raise InputError(
            f"{config.data_dir}: train and test must have the same classes; only one has: {', '.join(odd)}"
        )
    if not 2 <= len(parts["train"].classes) <= MOST_CLASSES:
        count = len(parts["train"].classes)
        raise InputError(f"{config.data_dir}: from two to {MOST_CLASSES} classes can be trained, found {count}")
    needed = sum(len(part.samples) for part in parts.values()) * config.image_size**2 * 3
    if needed > psutil.virtual_memory().available // 2:
        raise InputError(f"{config.data_dir} would take {needed / 1e9:.1f} GB in memory; use a smaller --image-size")
    classes = tuple(parts["train"].classes)
    return classes, _decode(parts["train"].samples, config), _decode(parts["test"].samples, config)


def _require_plain_tree(folder: Path, root: Path) -> None:
    """Raise InputError for what a folder from elsewhere could do harm with: names that are no text, links that lead
    out of the data folder or round in circles, and things that are no files (reading a pipe never ends).
    """
    if not Path(os.path.realpath(folder)).is_relative_to(root):
        raise InputError(f"{folder} is a link out of {root}; give its own place as --data-dir")
    for here, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(here, name)
            if not is_plain(name) or len(name) > LONGEST_NAME:
                raise InputError(f"{str(path)!a}: rename it without control characters, in {LONGEST_NAME} letters")
            if path.is_symlink() and (path.is_dir() or not Path(os.path.realpath(path)).is_relative_to(root)):
                raise InputError(f"{path} is a link to a folder or out of {root}; put the images themselves there")
        for name in files:
            if not Path(here, name).is_file():
                raise InputError(f"{Path(here, name)} is not a file; remove it")


def _decode(samples: list[tuple[str, int]], config: TrainConfig) -> ImageSet:
    from PIL import Image, ImageOps

    size = config.image_size
    images = torch.empty(len(samples), size, size, 3, dtype=torch.uint8)
    for i, (path, _) in enumerate(samples):
        try:
            with (
                warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
                Image.open(path, formats=FORMATS) as image,
            ):
                square = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
        except Exception as error:  # PIL's readers meet a torn file in many ways
            raise InputError(f"{path} cannot be read as an image ({error}); remove or replace it") from error
        images[i] = torch.from_numpy(np.array(square))
    return ImageSet(images, torch.tensor([label for _, label in samples]))


_READERS: dict[str, Callable[[TrainConfig], Parts]] = {
    "digits": _read_digits,
    "mnist": _read_mnist,
    "cifar10": _read_cifar10,
    "imagefolder": _read_imagefolder,
}


def _fetch(reader: type, data_dir: Path, folder: str, expected: str) -> tuple:
    """torchvision's train and test part; downloads at most once, whichever process comes first."""
    with suppress(*_TORN):  # not there, or not whole
        return _open_parts(reader, data_dir)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(data_dir / f".{folder}.lock"):
            if not (data_dir / folder).exists():
                _download(reader, data_dir, folder)
            return _open_parts(reader, data_dir)
    except _TORN as error:
        _remove_if_empty(data_dir, data_dir / f".{folder}.lock")
        present = "damaged" if (data_dir / folder).exists() else "missing"
        raise InputError(
            f"{present} data: expected {data_dir / expected}, and could not download it ({error}); copy the files "
            f"there, pass --data-dir, or use --recipe resnet50-digits, which needs no download"
        ) from error


_TORN = (RuntimeError, OSError, ValueError, LookupError, AssertionError)  # how torchvision meets a file that is torn


def _open_parts(reader: type, data_dir: Path) -> tuple:
    """Raises OSError, too, for a file of MNIST, which has no sums, that is far too large to be one."""
    large = [path for path in data_dir.glob("MNIST/raw/*-ubyte") if path.stat().st_size > LARGEST_MNIST]
    if large and reader.__name__ == "MNIST":
        raise OSError(f"{large[0]} is larger than any file of MNIST")
    return tuple(reader(str(data_dir), train=train, download=False) for train in (True, False))


def _download(reader: type, data_dir: Path, folder: str) -> None:
    """Into a folder beside the real one, renamed when complete: an interrupted download leaves nothing torn."""
    with tempfile.TemporaryDirectory(dir=data_dir, prefix=f".{folder}.") as fresh:
        print(f"downloading {folder} into {data_dir}", flush=True)
        reader(fresh, train=True, download=True)
        (Path(fresh) / folder).rename(data_dir / folder)


def _remove_if_empty(data_dir: Path, lock: Path) -> None:
    with suppress(OSError):  # a folder that holds anything stays
        lock.unlink(missing_ok=True)
        data_dir.rmdir()


def _fit_square(images: Tensor, config: TrainConfig) -> Tensor:
    """(N, h, w, c) -> (N, size, size, channels) as uint8: scaled where it must be, grey repeated for colour models."""
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
    for part in images.split(1000):  # a float copy of everything would take four times the data set's memory
        pixels = part.reshape(-1, channels).to(torch.float32) / 255
        total += pixels.sum(0, dtype=torch.float64)
        squares += pixels.square().sum(0, dtype=torch.float64)
    count = images.numel() / channels
    mean = total / count
    std = (squares / count - mean**2).clamp(min=1e-6).sqrt()
    return mean.float(), std.float()
