"""Schemas of what the notebooks write: the choice of notebook 01, their durations, the summary of notebook 04."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ddp_workbook.config import DeviceName
from ddp_workbook.records.run import SCHEMA_VERSION, Amount, Count, Share, Strict
from ddp_workbook.records.timing import Interval, SpeedupSummary


class CourseChoice(Strict):
    """What notebook 01 chose and the notebooks after it use; and how long it predicts the baseline to take."""

    schema_version: Literal[1] = SCHEMA_VERSION
    recipe: str
    data_dir: str
    device: DeviceName
    processes: Annotated[int, Field(ge=1)]
    epochs: Annotated[int, Field(ge=1)] | None
    predicted_seconds: Amount | None = None


class NotebookTimes(Strict):
    """Seconds from a notebook's first cell to its last, by notebook."""

    schema_version: Literal[1] = SCHEMA_VERSION
    seconds: dict[str, Amount]


class RunSummary(Strict):
    """One run in the summary of notebook 04."""

    accuracy: Interval
    train_seconds: Amount
    images_per_second: Amount
    worst_class: str
    worst_class_accuracy: Share


class CourseSummary(Strict):
    """What notebook 04 concludes: test_summary.json.

    rechecked_disagreements: images that the saved model classified differently when it was tested again. Rounding
    explains few of them; more belong to another model.
    """

    schema_version: Literal[2] = 2
    recipe: str
    test_images: Count
    baseline: RunSummary
    distributed: RunSummary
    accuracy_difference: Interval
    rechecked_disagreements: Count
    speedups: list[SpeedupSummary]

    @model_validator(mode="after")
    def _is_of_this_model(self) -> CourseSummary:
        most = max(2, self.test_images // 500)
        if self.rechecked_disagreements > most:
            raise ValueError(f"rechecked_disagreements must be at most {most}; more belong to another run's checkpoint")
        return self
