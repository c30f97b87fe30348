"""The labs in order, and the files of each: its stub, its three hints and its reference solution."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ddp_workbook.errors import InputError
from ddp_workbook.labs.answer import Answer
from ddp_workbook.labs.checks import (
    accumulate,
    average,
    buckets,
    capstone,
    checkpoint,
    costs,
    elastic,
    evaluate,
    ring_all_reduce,
    schedule,
    shard,
    sharded_optimizer,
    shift,
    start_alike,
    token_mean,
)
from ddp_workbook.labs.lab import Lab

LABS: tuple[Lab, ...] = (
    shift.LAB,
    ring_all_reduce.LAB,
    costs.LAB,
    shard.LAB,
    start_alike.LAB,
    average.LAB,
    buckets.LAB,
    accumulate.LAB,
    token_mean.LAB,
    evaluate.LAB,
    schedule.LAB,
    checkpoint.LAB,
    elastic.LAB,
    capstone.LAB,
    sharded_optimizer.LAB,
)
FOLDER = Path(__file__).parent / "tasks"


def find(name: str) -> Lab:
    """The lab of this name. Raises InputError that lists the names when there is none."""
    for lab in LABS:
        if lab.name == name:
            return lab
    raise InputError(f"there is no lab {name!r}; choose one of: {', '.join(lab.name for lab in LABS)}")


def stub(lab: Lab) -> str:
    """What the reader begins with."""
    return _read(lab, "stub.py")


def solution(lab: Lab) -> str:
    """A right answer."""
    return _read(lab, "solution.py")


def answer(lab: Lab, source: str | None, earlier: Sequence[Answer] = ()) -> Answer:
    """The source as an answer of this lab; None: the reference solution is lent for it."""
    lent = source is None
    return Answer(lab.name, solution(lab) if lent else source, lab.defines, tuple(earlier), lent)


def hints(lab: Lab) -> list[str]:
    """Three: where to look, what to compare, almost the line."""
    return [hint.strip() for hint in _read(lab, "hints.txt").split("\n\n") if hint.strip()]


def _read(lab: Lab, name: str) -> str:
    return (FOLDER / lab.name / name).read_text(encoding="utf-8")
