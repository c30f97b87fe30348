"""What the reader has done in the labs: events in results/labs.json, and the board that is made from them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from ddp_workbook.analysis.lab_progress import Row, count_solved, row, rows
from ddp_workbook.errors import InputError
from ddp_workbook.labs import catalogue
from ddp_workbook.labs.answer import Answer
from ddp_workbook.labs.lab import Lab, Verdict
from ddp_workbook.records.files import load_record, require_writable, save_record, sha256
from ddp_workbook.records.labs import LabEvent, LabHistory, LabsRecord

SECONDS_FOR_OTHERS = 10


def load(path: Path) -> LabsRecord:
    """The record, with all present labs. Raises InputError for a file that does not fit."""
    record = load_record(LabsRecord, path) if path.exists() else LabsRecord()
    labs = {
        lab.name: LabHistory(
            number=lab.number, title=lab.title, events=record.labs[lab.name].events if lab.name in record.labs else []
        )
        for lab in catalogue.LABS
    }
    return LabsRecord(labs=labs)


def lab_row(lab: Lab, path: Path) -> Row:
    """The lab's row on the board."""
    return row(lab.name, load(path).labs[lab.name])


def add_try(path: Path, lab: Lab, answer: Answer, verdict: Verdict) -> None:
    """Write down a try and its verdict."""
    digest, lent = sha256(answer.source.encode()), [each.name for each in answer.earlier if each.lent]
    _add(path, lab, what="try", diagnosis=verdict.diagnosis, seconds=verdict.seconds, answer=digest, lent=lent)


def next_hint(path: Path, lab: Lab) -> str:
    """The next hint, written down as taken. After the first one, each needs another wrong try before it.

    Raises InputError when it is too early, or when there is none left.
    """
    events, hints = load(path).labs[lab.name].events, catalogue.hints(lab)
    taken = sum(event.what == "hint" for event in events)
    if taken and events[-1].what == "hint":
        raise InputError(f"try {lab.name} once more with the last hint first: {hints[taken - 1]}")
    if taken == len(hints):
        raise InputError(f"{lab.name} has no further hint; you can give up and see the solution")
    _add(path, lab, what="hint")
    return f"hint {taken + 1} of {len(hints)}: {hints[taken]}"


def give_up(path: Path, lab: Lab) -> None:
    """Write down that the reader gave up, unless the lab is solved or given up already."""
    if lab_row(lab, path).state not in ("solved", "gave up"):
        _add(path, lab, what="gave up")


def _add(path: Path, lab: Lab, **event: object) -> None:
    """Several notebooks and a shell may write at the same time: one after another."""
    require_writable(path.parent)
    try:
        with FileLock(path.with_suffix(".lock"), timeout=SECONDS_FOR_OTHERS):
            record = load(path)
            record.labs[lab.name].events.append(LabEvent(at=datetime.now(UTC).replace(microsecond=0), **event))
            save_record(record, path)
    except (Timeout, OSError) as error:
        raise InputError(
            f"cannot lock {path.with_suffix('.lock')} ({error}); remove that file and try again"
        ) from error


def board(record: LabsRecord) -> str:
    """All labs as lines of text."""
    board = rows(record)
    width = max(len(each.name) for each in board)
    lines = [f"{'':>3}  {'lab':<{width}}  {'state':<8} {'tries':>5} {'hints':>5} {'minutes':>7}  last diagnosis"]
    lines += [
        f"{each.number:>3}  {each.name:<{width}}  {each.state:<8} {each.tries:>5} {each.hints:>5} "
        f"{each.minutes:>7.0f}  {'' if each.solved else each.last}{_lent(each)}".rstrip()
        for each in board
    ]
    return "\n".join([*lines, count_solved(board)])


def _lent(each: Row) -> str:
    return f"with the reference solution of {', '.join(each.lent)}" if each.solved and each.lent else ""
