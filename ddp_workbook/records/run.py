"""RunRecord and HistoryRecord: the schemas of results/<recipe>/*_metrics.json and *_history.json."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from ddp_workbook.config import TrainConfig
from ddp_workbook.errors import InputError
from ddp_workbook.records.fields import LONGEST_NAME, Amount, Count, Digest, Name, Share, Strict, moment
from ddp_workbook.records.files import load_record, put_in_place
from ddp_workbook.records.rank_bytes import RankBytes
from ddp_workbook.records.recorded_config import RecordedConfig

SCHEMA_VERSION = 1

MOST_CLASSES = 1000


def pack_bits(bits: Sequence[bool]) -> str:
    """One bit for each value, eight to a byte, the first one highest, zeros at the end; the bytes in base64."""
    return base64.b64encode(np.packbits(np.asarray(bits, dtype=bool)).tobytes()).decode()


def unpack_bits(text: str, count: int) -> list[bool]:
    """The `count` values of pack_bits(). Raises ValueError when the text is not what it makes of so many values."""
    try:
        packed = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    except ValueError:
        raise ValueError("correct_images is not base64") from None
    bits = np.unpackbits(packed).astype(bool)
    if len(packed) != -(-count // 8) or bits[count:].any():
        raise ValueError(f"correct_images must have a bit for each of the {count} test images")
    return bits[:count].tolist()


RunKind = Literal["baseline", "distributed"]


class Environment(Strict):
    """Machine and software of a run."""

    cpu: Name
    cores: Annotated[int, Field(ge=1)]
    memory_bytes: Count
    os: Name
    python: Name
    torch: Name
    torchvision: Name
    device: Name
    accelerator: Name | None
    accelerator_count: Count
    git_commit: Name | None


class WorldInfo(Strict):
    """The processes of a run, and what each of them used.

    batch_sizes: images of each rank in a batch, where --balance split them; None: config.batch_size on every rank.
    """

    processes: Annotated[int, Field(ge=1)]
    backend: Name | None
    threads_per_process: Annotated[int, Field(ge=1)]
    oversubscribed: bool
    global_batch: Annotated[int, Field(ge=1)]
    precision: Literal["fp32", "bf16", "fp16"]
    batch_sizes: list[Annotated[int, Field(ge=1)]] | None = None


class DatasetInfo(Strict):
    """The images; fingerprint is a SHA-256 over all pixels and labels."""

    name: Name
    classes: Annotated[list[Name], Field(min_length=1, max_length=MOST_CLASSES)]
    train_images: Count
    test_images: Count
    fingerprint: Digest


class RunRecord(Strict):
    """One finished training run. Times in seconds, memory in bytes, accuracy as a share of the test images.

    correct_images has a bit for each test image in order, 1 where the model is right, packed by pack_bits(): two runs
    on the same images can then be compared image by image. The two SHA-256 name the run's other files: its history, and
    what the model's file holds before its seal. These three and rank_bytes are None in records of earlier versions.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: RunKind
    recipe: Name
    finished_at: Annotated[str, Field(max_length=LONGEST_NAME), AfterValidator(moment)]
    config: RecordedConfig
    world: WorldInfo
    environment: Environment
    dataset: DatasetInfo
    parameters: Count
    train_seconds: Amount
    evaluation_seconds: Amount
    images_per_second: Amount
    test_accuracy: Share
    test_loss: Amount
    peak_memory_bytes: list[Count]
    accelerator_peak_bytes: list[Count | None]
    rank_bytes: list[RankBytes] | None = None
    confusion: list[list[Count]]
    correct_images: str | None = None
    history_sha256: Digest | None = None
    model_sha256: Digest | None = None

    @property
    def correct_bits(self) -> list[bool] | None:
        """For each test image in order: whether the model is right. None where the record does not say."""
        if self.correct_images is None:
            return None
        return unpack_bits(self.correct_images, self.dataset.test_images)

    @model_validator(mode="after")
    def _is_consistent(self) -> RunRecord:
        config, world = self.config, self.world
        classes, tested = len(self.dataset.classes), sum(map(sum, self.confusion))
        if len(self.confusion) != classes or any(len(row) != classes for row in self.confusion):
            raise ValueError(f"confusion must be {classes} x {classes}, as there are {classes} classes")
        if tested != self.dataset.test_images:
            raise ValueError(f"confusion counts {tested} images, the test set has {self.dataset.test_images}")
        correct = sum(self.confusion[i][i] for i in range(classes))
        if abs(correct / max(tested, 1) - self.test_accuracy) > 1e-9:
            raise ValueError("test_accuracy does not follow from confusion")
        if self.correct_images is not None and sum(self.correct_bits) != correct:
            raise ValueError("correct_images does not count as many correct predictions as confusion")
        for name in ("peak_memory_bytes", "accelerator_peak_bytes", "rank_bytes"):
            if getattr(self, name) is not None and len(getattr(self, name)) != world.processes:
                raise ValueError(f"{name} must have {world.processes} entries, one per process")
        if world.batch_sizes is not None and (
            len(world.batch_sizes) != world.processes
            or sum(world.batch_sizes) * config.grad_accum_steps != world.global_batch
        ):
            raise ValueError("world.batch_sizes must have one entry per process, together the global batch")
        if (world.batch_sizes is None) != (config.balance == "equal"):
            raise ValueError(f"world.batch_sizes is {world.batch_sizes}, but config.balance is {config.balance!r}")
        if world.oversubscribed and world.processes * world.threads_per_process <= self.environment.cores:
            raise ValueError(f"oversubscribed, with no more threads than the {self.environment.cores} cores")
        if self.kind == "baseline" and (world.processes, world.backend) != (1, None):
            raise ValueError("a baseline has one process and no backend")
        if not is_close(self.images_per_second * self.train_seconds, config.epochs * self.images_per_epoch):
            raise ValueError(f"images_per_second does not follow from {self.images_per_epoch} images an epoch")
        for name, value, asked in (
            ("recipe", self.recipe, config.recipe),
            ("dataset.name", self.dataset.name, config.dataset),
            ("world.global_batch", world.global_batch, config.global_batch(world.processes)),
            ("world.precision", world.precision, config.precision),
            ("world.threads_per_process", world.threads_per_process, config.threads or "auto"),
            ("environment.device", self.environment.device, config.device),
        ):
            if asked not in (value, "auto"):
                raise ValueError(f"{name} is {value!r}, but config asks for {asked!r}")
        return self

    @property
    def images_per_epoch(self) -> int:
        """Training images of one epoch: those of an incomplete last step are left out."""
        return self.dataset.train_images // self.world.global_batch * self.world.global_batch


class Communication(Strict):
    """Gradient communication of one epoch, mean over the ranks.

    waited_seconds: from a backward pass's last bucket being ready to the end of that pass, spent on the rest of the
    collectives and on slower ranks. collective_seconds: sum of the collectives' own times. They overlap with computing
    and with each other, so this sum is not the overhead. gradient_bytes: before any compression.
    """

    waited_seconds: Amount
    collective_seconds: Amount
    gradient_bytes: Count
    collectives: Count


class EpochRecord(Strict):
    """One epoch. Losses are means over images; the learning rate is that of the last step."""

    epoch: Annotated[int, Field(ge=1)]
    train_loss: Amount
    train_accuracy: Share
    test_loss: Amount
    test_accuracy: Share
    learning_rate: Amount
    train_seconds: Amount
    evaluation_seconds: Amount
    images_per_second: Amount
    communication: Communication | None = None


class HistoryRecord(Strict):
    """The epochs of one run, in order."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: RunKind
    recipe: str
    epochs: list[EpochRecord]

    @model_validator(mode="after")
    def _is_in_order(self) -> HistoryRecord:
        if [each.epoch for each in self.epochs] != list(range(1, len(self.epochs) + 1)):
            raise ValueError(f"epochs must be numbered from 1 to {len(self.epochs)}")
        return self


def is_close(first: float, second: float) -> bool:
    """Equal but for rounding."""
    return math.isclose(first, second, rel_tol=1e-6, abs_tol=1e-12)


def record_paths(run_dir: Path, kind: RunKind) -> tuple[Path, Path]:
    """Paths of a run's metrics and of its history."""
    return run_dir / f"{kind}_metrics.json", run_dir / f"{kind}_history.json"


def model_path(config: TrainConfig, kind: RunKind) -> Path:
    """The finished model: checkpoints/<baseline|distributed>_<model>_<dataset>.pth"""
    return config.checkpoint_dir / f"{kind}_{config.model}_{config.dataset}.pth"


def complete_saving(run: RunRecord, run_dir: Path) -> None:
    """Put a run's history and model in place. A run counts from the moment its metrics are written, which is before.

    Raises InputError when that fails; harmless where it was done already.
    """
    if run.history_sha256:
        for path in (model_path(run.config, run.kind), record_paths(run_dir, run.kind)[1]):
            put_in_place(path, run.history_sha256)


def load_run(run_dir: Path, kind: RunKind) -> tuple[RunRecord, HistoryRecord]:
    """Both files of one finished run. Raises InputError when one is missing, corrupt or of another run."""
    metrics, history = record_paths(run_dir, kind)
    run = load_record(RunRecord, metrics)
    complete_saving(run, run_dir)  # its process may have been killed before that
    epochs = load_record(HistoryRecord, history, run.history_sha256)
    if (epochs.kind, epochs.recipe, len(epochs.epochs)) != (run.kind, run.recipe, run.config.epochs):
        raise InputError(f"{history} belongs to another run than {metrics}; run the training again")
    if run.kind != kind:
        raise InputError(f"{metrics} does not fit: kind: is {run.kind!r}, expected {kind!r}")
    for name, said, follows in _totals(run, epochs.epochs):
        if not is_close(said, follows):
            raise InputError(
                f"{metrics} does not agree with {history}: {name} is {said:.6g} in one, {follows:.6g} in the other; "
                f"run the training again"
            )
    return run, epochs


def _totals(run: RunRecord, epochs: list[EpochRecord]) -> Iterator[tuple[str, float, float]]:
    """(name, what the run's record says, what its epochs say)."""
    for name in ("test_accuracy", "test_loss"):
        yield name, getattr(run, name), getattr(epochs[-1], name)
    for name in ("train_seconds", "evaluation_seconds"):
        yield name, getattr(run, name), sum(getattr(each, name) for each in epochs)
    for each in epochs:
        name = f"the number of images in epoch {each.epoch}"
        yield name, run.images_per_epoch, each.images_per_second * each.train_seconds
