"""Trained models on disk: written whole, and loaded without running anything that they contain."""

from __future__ import annotations

import hashlib
import pickle
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import Arithmetic
from ddp_workbook.distributed import unwrap
from ddp_workbook.errors import InputError
from ddp_workbook.files import write_whole
from ddp_workbook.record import Communication, EpochRecord, RunKind
from ddp_workbook.tally import Tally

CHECKPOINT_VERSION = 1
FIELDS = {
    "checkpoint_version",
    "kind",
    "epoch",
    "model",
    "optimizer",
    "schedule",
    "scaler",
    "random_state",
    "config",
}
_CONFIG = TypeAdapter(TrainConfig)


class Stopwatch:
    """Seconds of work so far, without the pauses."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.begun = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.begun

    @contextmanager
    def paused(self) -> Iterator[None]:
        stopped = time.perf_counter()
        yield
        self.begun += time.perf_counter() - stopped


@dataclass
class PartialEpoch:
    """How far the epoch under way has come on this rank."""

    tally: Tally = field(default_factory=Tally)
    seconds: float = 0.0
    """Of training, before this process took the epoch up."""
    communication: Communication | None = None
    """What of it the ranks spent on gradients, as far as it has been asked."""
    clock: Stopwatch = field(default_factory=Stopwatch)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.tally.steps

    def start_clock(self) -> None:
        self.clock = Stopwatch(self.seconds)


@dataclass
class TrainingState:
    """What changes while training: what a checkpoint holds. `epoch` counts the finished ones, `history` holds them."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    amp: Arithmetic
    epoch: int = 0
    partial: PartialEpoch = field(default_factory=PartialEpoch)
    history: list[EpochRecord] = field(default_factory=list)

    @property
    def fresh(self) -> bool:
        """No step has been taken."""
        return self.epoch == self.partial.step == 0


def checkpoint_path(config: TrainConfig, kind: RunKind) -> Path:
    """checkpoints/<baseline|distributed>_<model>_<dataset>.pth"""
    return config.checkpoint_dir / f"{kind}_{config.model}_{config.dataset}.pth"


def save_checkpoint(path: Path, state: TrainingState, config: TrainConfig, kind: RunKind) -> None:
    """Write everything that continuing would need, with the model as it was before DDP wrapped it."""
    content = {
        "checkpoint_version": CHECKPOINT_VERSION,
        "kind": kind,
        "epoch": state.epoch,
        "model": unwrap(state.model).state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "schedule": state.schedule.state_dict(),
        "scaler": state.amp.scaler.state_dict(),
        "random_state": torch.get_rng_state(),
        "config": _CONFIG.dump_python(config, mode="json"),
    }
    write_whole(path, lambda file: save_hashed(content, file))


class _HashingFile:
    """What torch.save writes to: passes all on, hashes it, and keeps the error that torch would hide behind its own."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hash, self.error = file, hashlib.sha256(), None

    def write(self, data: bytes) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        self.hash.update(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def save_hashed(content: object, file: BinaryIO) -> bytes:
    """torch.save; returns the SHA-256 of what was written. Raises OSError when the file cannot take it all."""
    out = _HashingFile(file)
    try:
        torch.save(content, out)
    except (RuntimeError, OSError):
        if out.error:
            raise out.error from None
        raise
    return out.hash.digest()


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> tuple[dict, TrainConfig]:
    """The content of a checkpoint and its configuration. Raises InputError for a torn, altered or foreign file."""
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; the run that makes it has not finished here") from None
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise InputError(f"{path} is torn or not a checkpoint ({reason}); run the training again") from error
    if not isinstance(content, dict) or set(content) != FIELDS:
        odd = sorted(map(str, set(content) ^ FIELDS)) if isinstance(content, dict) else [type(content).__name__]
        raise InputError(f"{path} is not a checkpoint of this workbook (differs in: {', '.join(odd)[:80]})")
    if content["checkpoint_version"] != CHECKPOINT_VERSION:
        raise InputError(f"{path}: checkpoint_version is not {CHECKPOINT_VERSION}; run the training again")
    try:
        return content, _CONFIG.validate_python(content["config"])
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(f"{path} does not fit: config.{where}: {error.errors()[0]['msg']}") from None


def load_weights(model: nn.Module, content: dict, path: Path) -> None:
    """Put a checkpoint's weights into the model. Raises InputError when they belong to another network."""
    try:
        model.load_state_dict(content["model"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(f"{path} holds the weights of another network ({str(error).splitlines()[0]})") from error
