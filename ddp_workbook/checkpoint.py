"""Trained models on disk: written whole, and loaded without running anything that they contain."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import Arithmetic
from ddp_workbook.distributed import unwrap
from ddp_workbook.errors import InputError
from ddp_workbook.files import write_whole
from ddp_workbook.record import RunKind

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


@dataclass
class TrainingState:
    """What changes while training: what a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    amp: Arithmetic
    epoch: int = 0


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
    write_whole(path, lambda file: torch.save(content, file))


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
