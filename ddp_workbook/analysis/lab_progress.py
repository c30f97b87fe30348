"""How far the reader has come in the labs: one row for each lab, from the events in results/labs.json."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

from ddp_workbook.records.labs import LabHistory, LabsRecord

LONGEST_PAUSE = timedelta(minutes=15)  # between two events; a longer one counts as a break


@dataclass(frozen=True)
class Row:
    """One lab on the board."""

    number: int
    name: str
    title: str
    solved: bool
    gave_up: bool
    """Before it was solved."""
    tries: int
    """Up to the first right one."""
    hints: int
    minutes: float
    """From the first event to the solution, without breaks."""
    last: str
    """Diagnosis of the last try up to the first right one."""
    lent: tuple[str, ...]
    """Earlier labs whose reference solution was used in the last of these tries."""

    @property
    def state(self) -> str:
        """In a word or two."""
        if self.gave_up:
            return "gave up"
        return "solved" if self.solved else "tried" if self.tries else "open"


def row(name: str, history: LabHistory) -> Row:
    """The lab's row. A lab that was solved stays solved; one that was given up before it was solved stays given up."""
    events = history.events
    first = next((i for i, event in enumerate(events) if event.diagnosis == "solved"), None)
    counted = events if first is None else events[: first + 1]
    pauses = [later.at - earlier.at for earlier, later in pairwise(counted)]
    tries = [event for event in counted if event.what == "try"]
    return Row(
        number=history.number,
        name=name,
        title=history.title,
        solved=first is not None,
        gave_up=any(event.what == "gave up" for event in counted),
        tries=len(tries),
        hints=sum(event.what == "hint" for event in counted),
        minutes=sum((pause for pause in pauses if pause <= LONGEST_PAUSE), timedelta()) / timedelta(minutes=1),
        last=(tries[-1].diagnosis or "") if tries else "",
        lent=tuple(tries[-1].lent) if tries else (),
    )


def rows(record: LabsRecord) -> list[Row]:
    """All labs, by number."""
    return sorted((row(name, history) for name, history in record.labs.items()), key=lambda each: each.number)


def count_solved(board: list[Row]) -> str:
    """'3 of 15 solved, 1 given up'."""
    solved, given_up = (sum(each.state == state for each in board) for state in ("solved", "gave up"))
    return f"{solved} of {len(board)} solved" + (f", {given_up} given up" if given_up else "")
