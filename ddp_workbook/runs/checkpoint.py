"""The checkpoint file: one format, for finished models and for runs in progress; atomic, with a checksum.

A file is torch's own format followed by a seal: a line that names this format and the SHA-256 of everything before it.
It is loaded with weights_only=True, so it cannot run code.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import BinaryIO

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from ddp_workbook.config import TrainConfig
from ddp_workbook.errors import InputError, first_fault
from ddp_workbook.records.files import require_file, write_atomically
from ddp_workbook.records.run import RecordedConfig, RunKind, model_path

SEAL = b"ddp-workbook checkpoint, version 2\n"
SEAL_BYTES = len(SEAL) + hashlib.sha256().digest_size
FIELDS = {"config", "fingerprint", "model", "training"}
"""training: what a resumed run needs (see resume.CheckpointManager); None in the file of a finished model."""
TRAINING_FIELDS = {
    "processes", "precision", "epoch", "step", "seconds", "communication", "history", "optimizer", "schedule", "scaler",
    "batch_sizes", "ranks",
}  # fmt: skip
_CONFIG = TypeAdapter(RecordedConfig)


def checkpoint_folder(config: TrainConfig, kind: RunKind) -> Path:
    """Checkpoints of a run in progress: checkpoints/<baseline|distributed>_<model>_<dataset>/"""
    return model_path(config, kind).with_suffix("")


def saved_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in the folder, newest first."""
    paths = [path for path in folder.glob("step-*.pt") if path.stem.removeprefix("step-").isdecimal()]
    return sorted(paths, key=lambda path: int(path.stem.removeprefix("step-")), reverse=True)


class _HashingFile:
    """The file that torch.save writes to: hashes the data, and keeps the error that torch would hide behind its own."""

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


def write_checkpoint(
    path: Path, config: TrainConfig, fingerprint: str, weights: dict[str, Tensor], training: dict | None = None
) -> str:
    """Write the file atomically; returns the SHA-256 in its seal. Raises InputError when it cannot be written.

    `weights` are those of a model's state_dict(), whole.
    """
    content = {
        "config": _CONFIG.dump_python(config, mode="json"),
        "fingerprint": fingerprint,
        "model": weights,
        "training": training,
    }

    def write(file: BinaryIO) -> str:
        out = _HashingFile(file)
        try:
            torch.save(content, out)
        except (RuntimeError, OSError):
            if out.error:
                raise out.error from None
            raise
        file.write(SEAL + out.hash.digest())
        return out.hash.hexdigest()

    return write_atomically(path, write)


def read_seal(path: Path) -> str | None:
    """The SHA-256 in a file's seal, not verified; None without a seal. Raises InputError for what cannot be read."""
    try:
        if require_file(path).st_size < SEAL_BYTES:
            return None
        with path.open("rb") as file:
            file.seek(-SEAL_BYTES, io.SEEK_END)
            seal = file.read()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; the run that writes it has not finished here") from None
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror or error})") from error
    return seal[len(SEAL) :].hex() if seal.startswith(SEAL) else None


def read_checkpoint(path: Path) -> dict:
    """The content, its "config" as a TrainConfig. Raises InputError for a missing, corrupt or foreign file."""
    checksum = read_seal(path)
    if checksum is None:
        raise InputError(f"{path} is truncated, or not a checkpoint of this version; run the training again")
    try:
        payload = memoryview(path.read_bytes())[:-SEAL_BYTES]
        if checksum != hashlib.sha256(payload).hexdigest():
            raise InputError(f"{path} is corrupt: its checksum does not match; run the training again")
        content = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except MemoryError:
        raise InputError(f"{path} does not fit into memory") from None
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror or error})") from error
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is not a checkpoint ({str(error).splitlines()[0][:80]})") from error
    if isinstance(content, dict) and isinstance(content.get("training"), dict):
        content["training"].setdefault("batch_sizes", None)  # every rank had equally many images before
    if not _has_fields(content, FIELDS) or not (
        content["training"] is None or _has_fields(content["training"], TRAINING_FIELDS)
    ):
        raise InputError(f"{path} is not a checkpoint of this workbook")
    try:
        content["config"] = _CONFIG.validate_python(content["config"])
    except ValidationError as error:
        raise InputError(f"{path} does not fit: config.{first_fault(error)}") from None
    return content


def _has_fields(content: object, names: set[str]) -> bool:
    return isinstance(content, dict) and set(content) == names


def load_weights(model: nn.Module, content: dict, path: Path) -> None:
    """Load a checkpoint's weights into the model. Raises InputError when they belong to another network."""
    try:
        model.load_state_dict(content["model"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(f"{path} holds the weights of another network ({str(error).splitlines()[0]})") from error
