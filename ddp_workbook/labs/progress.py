"""What the reader has done in the labs: events in results/labs.json, and the board that is made from them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

from ddp_workbook.errors import InputError
from ddp_workbook.labs import catalogue
from ddp_workbook.labs.lab import Lab, Verdict
from ddp_workbook.records.files import load_record, save_record
from ddp_workbook.records.labs import LabEvent, LabsRecord

LONGEST_PAUSE = timedelta(minutes=15)  # between two events; a longer one counts as a break


def load(path: Path) -> LabsRecord:
    """The record; an empty one where there is no file yet. Raises InputError for a file that does not fit."""
    return load_record(LabsRecord, path) if path.exists() else LabsRecord()


def add_try(path: Path, lab: Lab, source: str, verdict: Verdict, lent: list[str]) -> None:
    """Write down a try and its verdict."""
    digest = hashlib.sha256(source.encode()).hexdigest()
    _add(
        path,
        lab,
        LabEvent(at=_now(), what="try", diagnosis=verdict.diagnosis, seconds=verdict.seconds, answer=digest, lent=lent),
    )


def next_hint(path: Path, lab: Lab) -> str:
    """The next hint, written down as taken. After the first one, each needs another wrong try before it.

    Raises InputError when it is too early, or when there is none left.
    """
    events, hints = load(path).labs.get(lab.name, []), catalogue.hints(lab)
    taken = [event for event in events if event.what == "hint"]
    if len(taken) == len(hints):
        raise InputError(f"{lab.name} has no further hint; solution({lab.name!r}, give_up=True) shows an answer")
    if taken and events[-1].what == "hint":
        raise InputError(f"try {lab.name} once more with the last hint: {hints[len(taken) - 1]}")
    _add(path, lab, LabEvent(at=_now(), what="hint"))
    return f"hint {len(taken) + 1} of {len(hints)}: {hints[len(taken)]}"


def give_up(path: Path, lab: Lab) -> None:
    """Write down that the reader gave up, unless the lab is solved."""
    if not row(lab, load(path)).solved:
        _add(path, lab, LabEvent(at=_now(), what="gave up"))


def _add(path: Path, lab: Lab, event: LabEvent) -> None:
    record = load(path)
    events = {**record.labs, lab.name: [*record.labs.get(lab.name, []), event]}
    save_record(record.model_copy(update={"labs": events}), path)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True)
class Row:
    """One lab on the board."""

    lab: Lab
    solved: bool
    gave_up: bool
    tries: int
    """Up to the first right one."""
    hints: int
    minutes: float
    """From the first event to the solution, without breaks."""
    last: str
    """Diagnosis of the last try."""

    @property
    def state(self) -> str:
        """In one word."""
        if self.gave_up:
            return "gave up"
        return "solved" if self.solved else "tried" if self.tries else "open"


def row(lab: Lab, record: LabsRecord) -> Row:
    """The lab's row. A lab that was solved stays solved; one that was given up before it was solved stays given up."""
    events = record.labs.get(lab.name, [])
    first = next((i for i, event in enumerate(events) if event.diagnosis == "solved"), None)
    counted = events if first is None else events[: first + 1]
    pauses = [later.at - earlier.at for earlier, later in pairwise(counted)]
    tries = [event for event in counted if event.what == "try"]
    return Row(
        lab=lab,
        solved=first is not None,
        gave_up=any(event.what == "gave up" for event in counted),
        tries=len(tries),
        hints=sum(event.what == "hint" for event in counted),
        minutes=sum((pause for pause in pauses if pause <= LONGEST_PAUSE), timedelta()) / timedelta(minutes=1),
        last=(tries[-1].diagnosis or "") if tries else "",
    )


def board(record: LabsRecord) -> str:
    """All labs as lines of text."""
    rows = [row(lab, record) for lab in catalogue.LABS]
    lines = [f"{'':>3}  {'lab':<22} {'state':<8} {'tries':>5} {'hints':>5} {'minutes':>7}  last diagnosis"]
    lines += [
        f"{each.lab.number:>3}  {each.lab.name:<22} {each.state:<8} {each.tries:>5} {each.hints:>5} "
        f"{each.minutes:>7.0f}  {'' if each.solved else each.last}".rstrip()
        for each in rows
    ]
    solved = sum(each.solved and not each.gave_up for each in rows)
    return "\n".join([*lines, f"{solved} of {len(rows)} solved"])
