"""The schema of timings: benchmarks, experiments, the anatomy of a step. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ddp_workbook.record import (
    SCHEMA_VERSION,
    Amount,
    Count,
    Environment,
    RecordedConfig,
    Share,
    SpeedupSummary,
    Strict,
)

Role = Literal["serial", "bound", "distributed"]


class Arrangement(Strict):
    """One way to spread the work over the machine; the lists have an entry for each round.

    A bound is the same processes that never communicate. Losses are means over the ranks and over consecutive steps;
    accuracies are there where whole trainings were timed.
    """

    name: str
    role: Role
    processes: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    images_per_round: Count
    images_per_second: list[Amount]
    losses: list[list[Amount]]
    accuracies: list[Share]

    @property
    def global_batch(self) -> int:
        """Images behind one optimizer step."""
        return self.batch_size * self.processes


class BenchmarkRecord(Strict):
    """Short trainings timed in turns: `steps` optimizer steps of each arrangement a round, or all epochs (None)."""

    schema_version: Literal[1] = SCHEMA_VERSION
    recipe: str
    config: RecordedConfig
    environment: Environment
    precision: Literal["fp32", "bf16", "fp16"]
    scaling: Literal["strong", "weak"]
    steps: Annotated[int, Field(ge=1)] | None
    arrangements: Annotated[list[Arrangement], Field(min_length=1)]

    @model_validator(mode="after")
    def _rounds_agree(self) -> BenchmarkRecord:
        if len({len(one.images_per_second) for one in self.arrangements}) != 1:
            raise ValueError("images_per_second must have as many rounds in each arrangement")
        return self

    @property
    def rounds(self) -> int:
        """How often everything was timed."""
        return len(self.arrangements[0].images_per_second)

    def by_role(self, role: Role) -> list[Arrangement]:
        """The arrangements of this role, in order."""
        return [one for one in self.arrangements if one.role == role]


class Estimate(Strict):
    """A median and its 95 % interval."""

    value: Amount
    low: Amount
    high: Amount


class ProcessCountMetrics(Strict):
    """What an experiment found for one process count; times and rates are those of an optimizer step."""

    run: str
    processes: Count
    threads: Count
    oversubscribed: bool
    images_per_second: Estimate
    seconds_per_step: Amount
    share_of_bound: Estimate
    speedups: list[SpeedupSummary]


class PerformanceMetrics(Strict):
    """What an experiment found: performance_metrics.json."""

    schema_version: Literal[1] = SCHEMA_VERSION
    recipe: str
    scaling: Literal["strong", "weak"]
    steps: int | None
    rounds: Count
    environment: Environment
    process_counts: list[ProcessCountMetrics]


class StepTimes(Strict):
    """Seconds of one training step's parts on one rank. `collectives` is their summed time, `waited` the part of
    backward after its last bucket was ready; both are zero for a step that does not average gradients.
    """

    data: Amount
    forward: Amount
    backward: Amount
    optimizer: Amount
    collectives: Amount = 0.0
    waited: Amount = 0.0

    @property
    def total(self) -> float:
        """The whole step."""
        return self.data + self.forward + self.backward + self.optimizer


class Bucket(Strict):
    """One bucket of gradients: when all of them were there, when they were averaged, their bytes."""

    ready: Amount
    done: Amount
    bytes: Count


class Timeline(Strict):
    """One step on one rank, in seconds since it began: start and end of data, forward, backward, optimizer."""

    marks: Annotated[list[Amount], Field(min_length=5, max_length=5)]
    buckets: Annotated[list[Bucket], Field(min_length=1)]


class AnatomyRecord(Strict):
    """Steps that average gradients and steps under no_sync, timed in turns: a list of steps for each rank."""

    schema_version: Literal[1] = SCHEMA_VERSION
    recipe: str
    config: RecordedConfig
    environment: Environment
    processes: Annotated[int, Field(ge=2)]
    threads: Annotated[int, Field(ge=1)]
    precision: Literal["fp32", "bf16", "fp16"]
    parameters: Count
    averaged: list[Annotated[list[StepTimes], Field(min_length=2)]]
    alone: list[Annotated[list[StepTimes], Field(min_length=2)]]
    timeline: Timeline

    @property
    def gradient_bytes(self) -> int:
        """What one step averages."""
        return sum(bucket.bytes for bucket in self.timeline.buckets)


class AllReduceTimes(Strict):
    """Seconds of repeated all-reduces of one size."""

    bytes: Count
    seconds: Annotated[list[Amount], Field(min_length=1)]


class SurveyPoint(Strict):
    """One model at one batch size; seconds per step in each round, by the slowest rank.

    `serial` is one process on all cores with the global batch, `averaged` and `alone` are the ranks with and without
    gradient averaging.
    """

    model: str
    images: Annotated[int, Field(ge=1)]
    gradient_bytes: Count
    buckets: Annotated[int, Field(ge=1)]
    serial: Annotated[list[Amount], Field(min_length=2)]
    averaged: Annotated[list[Amount], Field(min_length=2)]
    alone: Annotated[list[Amount], Field(min_length=2)]


class SweepRecord(Strict):
    """All-reduces of many sizes among the processes of one machine."""

    schema_version: Literal[1] = SCHEMA_VERSION
    processes: Annotated[int, Field(ge=2)]
    samples: Annotated[list[AllReduceTimes], Field(min_length=2)]


class SurveyRecord(Strict):
    """Steps of several models and batch sizes, and the all-reduces of the same processes: what costs are fitted to."""

    schema_version: Literal[1] = SCHEMA_VERSION
    dataset: str
    environment: Environment
    processes: Annotated[int, Field(ge=2)]
    threads: Annotated[int, Field(ge=1)]
    sweep: SweepRecord
    points: Annotated[list[SurveyPoint], Field(min_length=2)]

    def of_model(self, model: str) -> list[SurveyPoint]:
        """This model's points, by batch size."""
        return sorted((point for point in self.points if point.model == model), key=lambda point: point.images)

    @property
    def models(self) -> list[str]:
        """In the order in which they were measured."""
        return list(dict.fromkeys(point.model for point in self.points))
