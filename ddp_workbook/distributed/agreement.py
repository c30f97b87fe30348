"""What all ranks of a run must have in common, compared before they train.

Each machine has its own command line, its own copy of the code and its own data. Ranks that differ in one of them would
train different models without an error, or wait for each other in different collectives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import torch

from ddp_workbook.config import PATHS, PLACEMENT, CheckpointOptions, TrainConfig, flag
from ddp_workbook.distributed.collectives import gather_objects
from ddp_workbook.errors import InputError
from ddp_workbook.records.run import DatasetInfo

PACKAGE = Path(__file__).resolve().parents[1]
LONGEST_VALUE = 80  # characters of a value in a message

Facts = dict[str, str | int | float | None]


def require_agreement(facts: Facts) -> None:
    """Compare the facts of all ranks. Raises InputError, on every rank, that names the first one that differs."""
    of_ranks = gather_objects(facts)
    for name in dict.fromkeys(name for one in of_ranks for name in one):
        ranks: dict[str, list[int]] = {}
        for rank, one in enumerate(of_ranks):
            ranks.setdefault(str(one.get(name, "missing")), []).append(rank)
        if len(ranks) > 1:
            values = ", ".join(f"{value[:LONGEST_VALUE]} on {_describe(of)}" for value, of in ranks.items())
            raise InputError(
                f"the ranks differ in {name}: {values}; start all of them with the same flags, code, versions and data"
            )


def facts_asked(config: TrainConfig, options: CheckpointOptions, script: Path) -> Facts:
    """What was started: versions, code and flags. Folders, device and threads may differ between machines.

    So may the build of torch, which is the part of its version after the plus sign.
    """
    compared = [field.name for field in fields(TrainConfig) if field.name not in PATHS | PLACEMENT]
    return {
        **{f"the version of {name}": version(name).partition("+")[0] for name in ("torch", "torchvision")},
        "the workbook's code (checksum)": code_checksum(script),
        **{flag(name): getattr(config, name) for name in compared},
        **{flag(field.name): getattr(options, field.name) for field in fields(CheckpointOptions)},
    }


def facts_found(device: torch.device, precision: str, data: DatasetInfo) -> Facts:
    """What a machine made of it: its images, and what `auto` has become. A run's record names one type of device."""
    images = f"{data.train_images} training and {data.test_images} test images"
    return {
        "the type of device": device.type,
        "the precision": precision,
        "the names of the classes": ", ".join(data.classes),
        "the images (fingerprint)": f"{data.fingerprint[:12]} ({images})",
    }


def code_checksum(script: Path) -> str:
    """Of the script and all Python files of this package, whatever their line ends are.

    Unlike a commit it also sees changes that are not committed, and needs no git.
    """
    digest = hashlib.sha256()
    for path in [*sorted(PACKAGE.rglob("*.py"), key=Path.as_posix), script]:
        digest.update(f"{path.name}\n{path.read_text(encoding='utf-8', errors='replace')}\0".encode())
    return digest.hexdigest()[:12]


def _describe(ranks: Sequence[int]) -> str:
    """rank 3; ranks 0-2, 5"""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    return f"rank {text}" if len(ranks) == 1 else f"ranks {text}"
