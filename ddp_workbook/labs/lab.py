"""What a lab is, and how an answer is judged."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from ddp_workbook.labs import team
from ddp_workbook.labs.answer import Answer
from ddp_workbook.labs.verdict import Wrong


@dataclass(frozen=True)
class Part:
    """One program of a judge, on so many ranks; 1: in one process without a group."""

    program: team.Program
    """Raises Wrong, or returns how many comparisons it made."""
    ranks: int = 1
    seconds: float = team.SECONDS
    hang: str = "hang"
    """The diagnosis when it has no end, for a program that a certain mistake makes hang. See Ledger.phase for words."""


@dataclass(frozen=True, kw_only=True)
class Lab:
    """One task. Its stub, hints and solution are files in labs/tasks/<name>/."""

    number: int
    name: str
    title: str
    minutes: int
    difficulty: int
    """1 to 3."""
    defines: tuple[str, ...]
    parts: tuple[Part, ...]
    uses: tuple[str, ...] = ()
    """Names of earlier labs whose answers this one may call."""


@dataclass(frozen=True)
class Verdict:
    """What the judge says of one try."""

    solved: bool
    diagnosis: str
    """'solved', or the mistake in one word."""
    message: str
    seconds: float


def judge(lab: Lab, answer: Answer) -> Verdict:
    """Run every part until one finds something wrong. Raises CannotJudge when a part could not be run."""
    started, passed, comparisons = time.perf_counter(), [], 0
    with tempfile.TemporaryDirectory(prefix="lab-") as folder:
        for part in lab.parts:
            try:
                comparisons += sum(team.run(part.program, answer, part.ranks, part.seconds, Path(folder)))
            except Wrong as wrong:
                before = [ranks for ranks in passed if 1 < ranks < part.ranks]
                prefix = f"Right on {before[-1]} ranks, wrong on {part.ranks}. " if before else ""
                diagnosis = part.hang if wrong.diagnosis == "hang" else wrong.diagnosis
                return Verdict(False, diagnosis, prefix + wrong.message, time.perf_counter() - started)
            passed.append(part.ranks)
    live = dict.fromkeys(str(ranks) for ranks in passed if ranks > 1)
    judged = f"{comparisons} comparisons" + (f", real processes: {' and '.join(live)}" if live else "")
    return Verdict(True, "solved", f"solved ({judged})", time.perf_counter() - started)
