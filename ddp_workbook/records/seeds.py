"""Schema of a study of seeds: the same two runs, each with several seeds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ddp_workbook.records.run import (
    SCHEMA_VERSION,
    Amount,
    Count,
    DatasetInfo,
    Environment,
    Name,
    Share,
    Strict,
    unpack_bits,
)


class SeedRun(Strict):
    """One run: its accuracy, and which test images it has right (records.run.pack_bits)."""

    finished_at: Name
    train_seconds: Amount
    test_accuracy: Share
    correct_images: str


class SeedPair(Strict):
    """The baseline and the distributed run with the same seed: the same initial weights and order of images."""

    seed: Count
    baseline: SeedRun
    distributed: SeedRun


class SeedStudy(Strict):
    """seeds.json: several seeds of one recipe, serial and on `processes` processes, on the same test images."""

    schema_version: Literal[1] = SCHEMA_VERSION
    recipe: Name
    epochs: Annotated[int, Field(ge=1)]
    global_batch: Annotated[int, Field(ge=1)]
    processes: Annotated[int, Field(ge=2)]
    dataset: DatasetInfo
    environment: Environment
    pairs: Annotated[list[SeedPair], Field(min_length=2)]

    @model_validator(mode="after")
    def _answers_are_complete(self) -> SeedStudy:
        if len({pair.seed for pair in self.pairs}) < len(self.pairs):
            raise ValueError("pairs must have different seeds")
        for run in (run for pair in self.pairs for run in (pair.baseline, pair.distributed)):
            right = sum(unpack_bits(run.correct_images, self.dataset.test_images))
            if abs(right / max(self.dataset.test_images, 1) - run.test_accuracy) > 1e-9:
                raise ValueError("test_accuracy must be the share of correct_images")
        return self

    def answers(self, kind: Literal["baseline", "distributed"]) -> list[list[bool]]:
        """Right or wrong by test image, for each seed."""
        return [unpack_bits(getattr(pair, kind).correct_images, self.dataset.test_images) for pair in self.pairs]

    def accuracies(self, kind: Literal["baseline", "distributed"]) -> list[float]:
        """Test accuracy of each seed."""
        return [getattr(pair, kind).test_accuracy for pair in self.pairs]
