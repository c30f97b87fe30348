"""Schema of the batch map: steps of every network at growing global batches, until it pays or a limit ends it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ddp_workbook.config import CommHookName
from ddp_workbook.records.run import SCHEMA_VERSION, Count, Environment, Name, Strict

Baseline = Literal["one worker", "all cores"]
Seconds = Annotated[list[Annotated[float, Field(gt=0, le=1e18, allow_inf_nan=False)]], Field(min_length=2)]


class MapPoint(Strict):
    """One global batch of one network: seconds per step by the slowest rank, a value for each round.

    `serial` has the baselines: one process with the threads of a rank ("one worker"), and one with all cores. On an
    accelerator the two are the same. `distributed` has the ways to send gradients, named as in --comm-hook.
    `peak_bytes` is the largest memory of all ranks of a configuration together, so far.
    """

    batch: Annotated[int, Field(ge=1)]
    steps: Annotated[int, Field(ge=1)]
    serial: Annotated[dict[Baseline, Seconds], Field(min_length=1)]
    distributed: Annotated[dict[CommHookName, Seconds], Field(min_length=1)]
    peak_bytes: Count

    @model_validator(mode="after")
    def _rounds_agree(self) -> MapPoint:
        if len({len(seconds) for seconds in (*self.serial.values(), *self.distributed.values())}) != 1:
            raise ValueError("serial and distributed must have as many rounds each")
        return self

    @property
    def rounds(self) -> int:
        """Number of timed rounds."""
        return len(next(iter(self.serial.values())))


class MapEnd(Strict):
    """Why no larger batch was measured: it pays in every way; memory or training images end; or nobody asked for it.

    With "memory": the bytes that the next batch needs, extrapolated from the last two, and those that were available.
    """

    reason: Literal["pays", "memory", "images", "asked"]
    needed_bytes: Count | None = None
    available_bytes: Count | None = None

    @model_validator(mode="after")
    def _memory_has_bytes(self) -> MapEnd:
        if {self.needed_bytes is not None, self.available_bytes is not None} != {self.reason == "memory"}:
            raise ValueError("needed_bytes and available_bytes belong to the reason memory")
        return self


class NetworkMap(Strict):
    """The points of one network, by batch; `end` is None until the largest batch has been measured."""

    model: Name
    points: list[MapPoint]
    end: MapEnd | None = None

    @model_validator(mode="after")
    def _points_make_curves(self) -> NetworkMap:
        batches = [point.batch for point in self.points]
        if batches != sorted(set(batches)):
            raise ValueError("points must be in the order of their batches, each once")
        if len({(tuple(point.serial), tuple(point.distributed)) for point in self.points}) > 1:
            raise ValueError("every point must have the same baselines and ways to send")
        return self


class BatchMap(Strict):
    """batch_map.json: when several processes of this machine pay, for every network on one data set."""

    schema_version: Literal[1] = SCHEMA_VERSION
    dataset: Name
    environment: Environment
    processes: Annotated[int, Field(ge=2)]
    threads: Annotated[int, Field(ge=1)]
    backend: Literal["gloo", "nccl"]
    largest_batch: Annotated[int, Field(ge=1)] | None = None
    networks: Annotated[list[NetworkMap], Field(min_length=1)]
