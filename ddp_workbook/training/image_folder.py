"""The user's own images: a tree train/<class>/*, test/<class>/*."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets import ImageFolder

from ddp_workbook.config import TrainConfig
from ddp_workbook.errors import InputError
from ddp_workbook.records.fields import LONGEST_NAME, is_plain
from ddp_workbook.records.run import MOST_CLASSES

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # PIL goes by content: an EPS named .png would run Ghostscript
EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # modes of at most 8 bits a channel
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
MOST_ENDINGS = 5  # in the line about files that are not used

Part = tuple[Tensor, Tensor]  # images (N, size, size, 3) uint8, labels (N,) int64


def read_image_folder(config: TrainConfig) -> tuple[tuple[str, ...], Part, Part, str | None]:
    """Classes, training part, test part, and a line about files that are not used.

    Each image is scaled and centre-cropped to a square. Raises InputError that names the folder or file that cannot be
    used.
    """
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
    return classes, train, test, _describe_unused(config.data_dir, [s for part in parts.values() for s in part.samples])


def _describe_unused(root: Path, samples: list[tuple[str, int]]) -> str | None:
    """Files of other types than those that torchvision takes for images, such as GIF; None where all are used."""
    used = {Path(path) for path, _ in samples}
    files = (path for part in ("train", "test") for path in (root / part).rglob("*") if path not in used)
    endings = Counter(path.suffix.lower() or "no ending" for path in files if path.is_file() and path.name[0] != ".")
    if not endings:
        return None
    kinds = ", ".join(f"{count} x {ending}" for ending, count in endings.most_common(MOST_ENDINGS))
    more = " and others" if len(endings) > MOST_ENDINGS else ""
    return f"{endings.total()} file(s) in {root} are not used ({kinds}{more}); image files are {', '.join(FORMATS)}"


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
    images = torch.empty(len(samples), size, size, 3, dtype=torch.uint8)
    for i, (path, _) in enumerate(samples):
        try:
            with (
                warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
                Image.open(path, formats=FORMATS) as image,
            ):
                square = ImageOps.fit(_to_rgb(image), (size, size), Image.Resampling.BILINEAR)
        except Exception as error:  # PIL's readers fail in many ways on a corrupt file
            raise InputError(f"{path} cannot be read as an image ({error}); remove or replace it") from error
        images[i] = torch.from_numpy(np.array(square))
    return images, torch.tensor([label for _, label in samples])


def _to_rgb(image: Image.Image) -> Image.Image:
    """8 bits in each of three channels: 16 bits are scaled, transparent pixels are shown on white.

    (What a transparent pixel's colour is differs from program to program: without a background, a black drawing on
    nothing becomes a black square.) Raises ValueError for numbers whose range the file does not say.
    """
    if image.format == "TIFF" and image.mode in SIXTEEN_BITS and _tiff_tags(image) != (16, 1):
        raise ValueError("it has 12 bits per pixel, or 0 is white in it; save it with 8 or 16 bits and 0 as black")
    if image.mode in SIXTEEN_BITS or (image.mode == "I" and image.format in ("PNG", "PPM")):  # they have at most 16
        grey = np.rint(np.asarray(image, dtype=np.float32) / 257)  # 65535 becomes 255
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode not in EIGHT_BITS:
        raise ValueError(f"its pixels are of mode {image.mode}; save it with 8 or 16 bits, in grey or RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _tiff_tags(image: Image.Image) -> tuple[int, int]:
    """Bits per sample, and which end of the range is black (1: 0 is)."""
    return image.tag_v2.get(258, (1,))[0], image.tag_v2.get(262, 0)
