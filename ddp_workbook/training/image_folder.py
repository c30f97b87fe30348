"""The user's own images: a tree train/<class>/*, test/<class>/*."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from ddp_workbook.config import TrainConfig
from ddp_workbook.errors import InputError
from ddp_workbook.records.run import LONGEST_NAME, MOST_CLASSES, is_plain

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # PIL goes by content: an EPS named .png would run Ghostscript

Part = tuple[Tensor, Tensor]  # images (N, size, size, 3) uint8, labels (N,) int64


def read_image_folder(config: TrainConfig) -> tuple[tuple[str, ...], Part, Part]:
    """Classes, training part and test part; each image is scaled and centre-cropped to a square.

    Raises InputError that names the folder or file that cannot be used.
    """
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
    classes = tuple(parts["train"].classes)
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise InputError(
            f"{config.data_dir}: the number of classes must be from 2 to {MOST_CLASSES}, not {len(classes)}"
        )
    needed = sum(len(part.samples) for part in parts.values()) * config.image_size**2 * 3
    if needed > psutil.virtual_memory().available // 2:
        raise InputError(f"{config.data_dir} would take {needed / 1e9:.1f} GB in memory; use a smaller --image-size")
    train, test = (_decode(parts[name].samples, config.image_size) for name in ("train", "test"))
    return classes, train, test


def _require_plain_tree(folder: Path, root: Path) -> None:
    """Raise InputError for what a folder from elsewhere could do harm with: names with control characters, links that
    lead out of the data folder or in circles, and things that are not files (reading a pipe never ends).
    """
    if not Path(os.path.realpath(folder)).is_relative_to(root):
        raise InputError(f"{folder} is a link out of {root}; give the folder that it points to as --data-dir")
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


def _decode(samples: list[tuple[str, int]], size: int) -> Part:
    from PIL import Image, ImageOps

    images = torch.empty(len(samples), size, size, 3, dtype=torch.uint8)
    for i, (path, _) in enumerate(samples):
        try:
            with (
                warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
                Image.open(path, formats=FORMATS) as image,
            ):
                square = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
        except Exception as error:  # PIL's readers fail in many ways on a corrupt file
            raise InputError(f"{path} cannot be read as an image ({error}); remove or replace it") from error
        images[i] = torch.from_numpy(np.array(square))
    return images, torch.tensor([label for _, label in samples])
