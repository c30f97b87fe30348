"""Schemas of timings: benchmarks, experiments, the step-time breakdown, the batch-size sweep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import AliasChoices, BeforeValidator, ConfigDict, Field, model_validator

from ddp_workbook.records.run import SCHEMA_VERSION, Amount, Count, Environment, RecordedConfig, Share, Strict

OLD_ROLES = {"bound": "no-communication"}
Role = Annotated[
    Literal["serial", "no-communication", "distributed"], BeforeValidator(lambda role: OLD_ROLES.get(role, role))
]
PrecisionName = Literal["fp32", "bf16", "fp16"]


def _renamed(name: str, old: str, **options: object) -> object:
    """A field that records of an earlier version called `old`."""
    return Field(validation_alias=AliasChoices(name, old), **options)


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % confidence interval."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)  # as Strict

    value: float
    low: float
    high: float

    def text(self, spec: str, scale: float = 1.0) -> str:
        """The text "value [low, high]", each times `scale` and in the format `spec`."""
        return f"{scale * self.value:{spec}} [{scale * self.low:{spec}}, {scale * self.high:{spec}}]"


class Configuration(Strict):
    """One way to use the machine in a benchmark; the lists have an entry for each round.

    "no-communication" is the same processes without any communication, an upper bound for "distributed". Losses are
    means over the ranks and over consecutive steps. Accuracies are given only where whole trainings were timed.
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
    """Interleaved short trainings: `steps` optimizer steps of each configuration a round, or all epochs (None)."""

    schema_version: Literal[1] = SCHEMA_VERSION
    recipe: str
    config: RecordedConfig
    environment: Environment
    precision: PrecisionName
    scaling: Literal["strong", "weak"]
    steps: Annotated[int, Field(ge=1)] | None
    new_processes: bool = False
    """Each round had processes of its own; in records of earlier versions all rounds had the same ones."""
    configurations: list[Configuration] = _renamed("configurations", "arrangements", min_length=1)

    @model_validator(mode="after")
    def _rounds_agree(self) -> BenchmarkRecord:
        if len({len(configuration.images_per_second) for configuration in self.configurations}) != 1:
            raise ValueError("images_per_second must have as many rounds in each configuration")
        return self

    @property
    def rounds(self) -> int:
        """Number of timed rounds."""
        return len(self.configurations[0].images_per_second)

    def by_role(self, role: Role) -> list[Configuration]:
        """The configurations with this role, in order."""
        return [configuration for configuration in self.configurations if configuration.role == role]


class SpeedupSummary(Strict):
    """Speedup of a distributed configuration over one serial baseline."""

    baseline: str
    speedup: Interval
    efficiency: Amount


class ProcessCountMetrics(Strict):
    """Results of an experiment for one process count; times and rates are those of an optimizer step."""

    run: str
    processes: Count
    threads: Count
    oversubscribed: bool
    images_per_second: Interval
    seconds_per_step: Amount
    share_of_upper_bound: Interval
    speedups: list[SpeedupSummary]


class PerformanceMetrics(Strict):
    """Results of an experiment: performance_metrics.json."""

    schema_version: Literal[2] = 2
    recipe: str
    scaling: Literal["strong", "weak"]
    steps: int | None
    rounds: Count
    environment: Environment
    process_counts: list[ProcessCountMetrics]


class StepTimes(Strict):
    """Seconds of one training step's parts on one rank.

    `collectives` is the sum of the collectives' times, `waited` the part of backward after its last bucket was ready;
    both are zero for a step without gradient synchronization.
    """

    data: Amount
    forward: Amount
    backward: Amount
    optimizer: Amount
    collectives: Amount = 0.0
    waited: Amount = 0.0

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return self.data + self.forward + self.backward + self.optimizer


class Bucket(Strict):
    """One bucket of gradients: when it was ready, when its all-reduce was done, its bytes before compression."""

    ready: Amount
    done: Amount
    bytes: Count


class Timeline(Strict):
    """One step on one rank. marks: start and end of data, forward, backward, optimizer.

    All times are seconds since the first rank began the step, on the clock that the processes of a machine share.
    """

    marks: Annotated[list[Amount], Field(min_length=5, max_length=5)]
    buckets: Annotated[list[Bucket], Field(min_length=1)]


class StepBreakdown(Strict):
    """Interleaved steps with gradient synchronization and under no_sync: a list of steps for each rank.

    timelines: the last synced step on each rank; records of an earlier version have rank 0's alone.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    recipe: str
    config: RecordedConfig
    environment: Environment
    processes: Annotated[int, Field(ge=2)]
    threads: Annotated[int, Field(ge=1)]
    precision: PrecisionName
    parameters: Count
    synced: list[Annotated[list[StepTimes], Field(min_length=2)]] = _renamed("synced", "averaged")
    no_sync: list[Annotated[list[StepTimes], Field(min_length=2)]] = _renamed("no_sync", "alone")
    timelines: Annotated[
        list[Timeline], BeforeValidator(lambda found: [found] if isinstance(found, dict) else found)
    ] = _renamed("timelines", "timeline", min_length=1)

    @model_validator(mode="after")
    def _ranks_agree(self) -> StepBreakdown:
        if len(self.timelines) not in (1, self.processes):
            raise ValueError(f"timelines must have {self.processes} entries, one per process")
        if len({tuple(bucket.bytes for bucket in each.buckets) for each in self.timelines}) != 1:
            raise ValueError("timelines must have the same buckets on every rank")
        return self

    @property
    def timeline(self) -> Timeline:
        """Rank 0's."""
        return self.timelines[0]

    @property
    def gradient_bytes(self) -> int:
        """Bytes that one step all-reduces."""
        return sum(bucket.bytes for bucket in self.timeline.buckets)


class AllReduceTimes(Strict):
    """Seconds of repeated all-reduces of one size."""

    bytes: Count
    seconds: Annotated[list[Amount], Field(min_length=1)]


class AllReduceBenchmark(Strict):
    """All-reduces of many sizes among the processes of one machine."""

    schema_version: Literal[1] = SCHEMA_VERSION
    processes: Annotated[int, Field(ge=2)]
    samples: Annotated[list[AllReduceTimes], Field(min_length=2)]


class SweepPoint(Strict):
    """One model at one batch size: seconds per step by the slowest rank.

    `serial` is one process on all cores with the global batch, a value for each round; `synced` and `no_sync` are the
    ranks with and without gradient synchronization, a value for each step, round after round.
    """

    model: str
    images: Annotated[int, Field(ge=1)]
    gradient_bytes: Count
    buckets: Annotated[int, Field(ge=1)]
    serial: Annotated[list[Amount], Field(min_length=2)]
    synced: list[Amount] = _renamed("synced", "averaged", min_length=2)
    no_sync: list[Amount] = _renamed("no_sync", "alone", min_length=2)

    @model_validator(mode="after")
    def _rounds_are_complete(self) -> SweepPoint:
        if len(self.synced) != len(self.no_sync) or len(self.synced) % len(self.serial):
            raise ValueError(f"synced and no_sync must have equally many steps in each of {len(self.serial)} rounds")
        return self


class BatchSweep(Strict):
    """Steps of several models at several batch sizes, and all-reduces of the same processes: the cost model's data."""

    schema_version: Literal[1] = SCHEMA_VERSION
    dataset: str
    environment: Environment
    processes: Annotated[int, Field(ge=2)]
    threads: Annotated[int, Field(ge=1)]
    all_reduce: AllReduceBenchmark = _renamed("all_reduce", "sweep")
    points: Annotated[list[SweepPoint], Field(min_length=2)]

    def of_model(self, model: str) -> list[SweepPoint]:
        """This model's points, by batch size."""
        return sorted((point for point in self.points if point.model == model), key=lambda point: point.images)

    def without_round(self, point: SweepPoint, number: int) -> BatchSweep:
        """The same sweep, but this point lacks this round."""
        rounds = len(point.serial)

        def cut(values: list[float]) -> list[float]:
            steps = len(values) // rounds
            return values[: number * steps] + values[(number + 1) * steps :]

        shorter = {name: cut(getattr(point, name)) for name in ("serial", "synced", "no_sync")}
        points = [point.model_copy(update=shorter) if each is point else each for each in self.points]
        return self.model_copy(update={"points": points})

    @property
    def models(self) -> list[str]:
        """The models, in the order in which they were measured."""
        return list(dict.fromkeys(point.model for point in self.points))
