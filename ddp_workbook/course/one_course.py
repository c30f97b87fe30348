"""One course in one folder: while `ddp-workbook run` works there, no other choice and no other measurement is made.

A reader who opens notebooks by hand is not stopped, except by notebook 01: results/course.json is the course's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from ddp_workbook.measurement.alone import measuring_alone
from ddp_workbook.records.files import lock, require_writable

IN_COURSE = "DDP_WORKBOOK_COURSE"
"""Environment variable of the kernels that `ddp-workbook run` starts."""


@contextmanager
def course_of(results: Path) -> Iterator[None]:
    """Hold the folder for a course. Raises InputError, naming the process, when another one is at work there."""
    with _course_lock(results), measuring_alone(results):
        yield


def choosing(results: Path) -> AbstractContextManager[None]:
    """For the writing of the choice. Raises InputError, naming the process, while `ddp-workbook run` uses another."""
    return nullcontext() if IN_COURSE in os.environ else _course_lock(results)


def _course_lock(results: Path) -> AbstractContextManager[None]:
    require_writable(results)
    return lock(results / ".course.lock", "wait for it, or work in a copy of the workbook's folder")
