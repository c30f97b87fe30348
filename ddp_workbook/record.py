"""RunRecord: the schema of results/<recipe>/*.json. Imports no torch, so that reading results is quick."""

from __future__ import annotations

import unicodedata
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ddp_workbook.config import TrainConfig
from ddp_workbook.errors import InputError
from ddp_workbook.files import load_record

SCHEMA_VERSION = 1

MOST_CLASSES = 1000
LONGEST_NAME = 200  # characters of a class's name, or of what a machine calls itself


def is_plain(text: str) -> bool:
    """Whether it is text and nothing else: no control characters, nothing that UTF-8 cannot write."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def _plain(text: str) -> str:
    if not is_plain(text):
        raise ValueError("must not contain control characters")
    return text


def _moment(text: str) -> str:
    """A run cannot have finished at a time that is none, or before the workbook was written."""
    if datetime.fromisoformat(text).year < 2000:
        raise ValueError("must be a year from 2000 on")
    return text


Count = Annotated[int, Field(ge=0, lt=2**63)]
Amount = Annotated[float, Field(ge=0, le=1e18, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(max_length=LONGEST_NAME), AfterValidator(_plain)]
RunKind = Literal["baseline", "distributed"]


# Fields that configurations did not always have, with what every run did before there was a choice.
ADDED_LATER = {"averaging": "all-reduce"}


def _whole(config: object) -> object:
    """A default in place of a missing field could say what a run never did."""
    if not isinstance(config, dict):
        return config
    missing = [field.name for field in fields(TrainConfig) if field.name not in config.keys() | ADDED_LATER]
    if missing:
        raise ValueError(f"{', '.join(missing)} is missing: the file is of an older version")
    return ADDED_LATER | config


RecordedConfig = Annotated[TrainConfig, BeforeValidator(_whole)]


class Strict(BaseModel):
    """Refuses unknown fields, cannot be changed once made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Environment(Strict):
    """The machine and the software that a run used."""

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
    """How many processes a run had, and how they were tied together."""

    processes: Annotated[int, Field(ge=1)]
    backend: Name | None
    threads_per_process: Annotated[int, Field(ge=1)]
    oversubscribed: bool
    global_batch: Annotated[int, Field(ge=1)]
    precision: Literal["fp32", "bf16", "fp16"]


class DatasetInfo(Strict):
    """The images, with a fingerprint (SHA-256 over the pixels and labels as they were read)."""

    name: Name
    classes: Annotated[list[Name], Field(min_length=1, max_length=MOST_CLASSES)]
    train_images: Count
    test_images: Count
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class RunRecord(Strict):
    """One finished training run. Times in seconds, memory in bytes, accuracy as a share of the test images."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: RunKind
    recipe: Name
    finished_at: Annotated[str, Field(max_length=LONGEST_NAME), AfterValidator(_moment)]
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
    confusion: list[list[Count]]

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> RunRecord:
        classes, tested = len(self.dataset.classes), sum(map(sum, self.confusion))
        if len(self.confusion) != classes or any(len(row) != classes for row in self.confusion):
            raise ValueError(f"confusion must be {classes} x {classes}, as there are {classes} classes")
        if tested != self.dataset.test_images:
            raise ValueError(f"confusion counts {tested} images, the test set has {self.dataset.test_images}")
        right = sum(self.confusion[i][i] for i in range(classes))
        if abs(right / max(tested, 1) - self.test_accuracy) > 1e-9:
            raise ValueError("test_accuracy does not follow from confusion")
        if len(self.peak_memory_bytes) != self.world.processes:
            raise ValueError(f"peak_memory_bytes must have {self.world.processes} entries, one per process")
        return self


class Communication(Strict):
    """The gradient traffic of one epoch, as the mean over the ranks.

    Waited is the time from a backward pass's last bucket being ready to the end of the pass: for what is left of the
    collectives, and for slower ranks. The collectives' own times are summed, though they overlap with computing and
    with each other: that sum is no overhead. Bytes are those of the gradients, before any compression.
    """

    waited_seconds: Amount
    collective_seconds: Amount
    gradient_bytes: Count
    collectives: Count


class EpochRecord(Strict):
    """One epoch; the learning rate is that of its last step, losses are means over images."""

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


class CourseChoice(Strict):
    """What notebook 01 chose and the notebooks after it use."""

    schema_version: Literal[1] = SCHEMA_VERSION
    recipe: str
    data_dir: str
    device: Literal["cpu", "cuda", "mps"]
    processes: Annotated[int, Field(ge=1)]
    epochs: Annotated[int, Field(ge=1)] | None


class NotebookTimes(Strict):
    """Seconds from a notebook's first cell to its last, by notebook."""

    schema_version: Literal[1] = SCHEMA_VERSION
    seconds: dict[str, Amount]


class RunSummary(Strict):
    """One run in the summary of notebook 04."""

    test_accuracy: Share
    accuracy_low: Share
    accuracy_high: Share
    train_seconds: Amount
    images_per_second: Amount
    worst_class: str
    worst_class_accuracy: Share


class SpeedupSummary(Strict):
    """Speedup of the distributed run over one serial baseline, with its 95 % interval."""

    baseline: str
    speedup: Amount
    low: Amount
    high: Amount
    efficiency: Amount


class CourseSummary(Strict):
    """What notebook 04 concludes: test_summary.json."""

    schema_version: Literal[1] = SCHEMA_VERSION
    recipe: str
    test_images: Count
    baseline: RunSummary
    distributed: RunSummary
    accuracy_difference: float
    accuracy_difference_low: float
    accuracy_difference_high: float
    rechecked_disagreements: Count
    speedups: list[SpeedupSummary]


def record_paths(run_dir: Path, kind: RunKind) -> tuple[Path, Path]:
    """Where a run's metrics and history are written."""
    return run_dir / f"{kind}_metrics.json", run_dir / f"{kind}_history.json"


def load_run(run_dir: Path, kind: RunKind) -> tuple[RunRecord, HistoryRecord]:
    """Both files of one finished run. Raises InputError when one is missing, torn, foreign or of another run."""
    metrics, history = record_paths(run_dir, kind)
    run, epochs = load_record(RunRecord, metrics), load_record(HistoryRecord, history)
    if (epochs.kind, epochs.recipe, len(epochs.epochs)) != (run.kind, run.recipe, run.config.epochs):
        raise InputError(f"{history} belongs to another run than {metrics}; run the training again")
    if run.kind != kind:
        raise InputError(f"{metrics} does not fit: kind: is {run.kind!r}, expected {kind!r}")
    return run, epochs
