"""The report's page on the labs: what the reader built, with how many tries and hints."""

from __future__ import annotations

from pathlib import Path

from ddp_workbook.analysis.lab_progress import Row, count_solved, rows
from ddp_workbook.records.files import load_record
from ddp_workbook.records.labs import LabsRecord

RECORD = "labs.json"
CAPSTONE = "capstone"


def labs_content(results_dir: Path) -> dict | None:
    """What labs.typ prints; None where no lab has been begun. Raises InputError for a record that does not fit."""
    path = results_dir / RECORD
    board = rows(load_record(LabsRecord, path)) if path.exists() else []
    if all(each.state == "open" and not each.hints for each in board):
        return None
    return {
        "table": [_line(each) for each in board],
        "solved": count_solved(board),
        "capstone": next((_capstone(each) for each in board if each.name == CAPSTONE and each.state == "solved"), None),
    }


def _line(each: Row) -> list[str]:
    begun = each.state != "open" or each.hints > 0
    numbers = [str(each.tries), str(each.hints), f"{each.minutes:.0f}"] if begun else ["", "", ""]
    return [str(each.number), each.title, each.state, *numbers, each.last.replace("-", " ") if not each.solved else ""]


def _capstone(each: Row) -> str:
    """Whose parts the run of the capstone was made of."""
    if not each.lent:
        return "all its parts are the reader's own"
    return f"reference solutions stood in for {', '.join(each.lent)}; the other parts are the reader's own"
