"""`ddp-workbook labs status | check | hint | solution | reset`: the labs from a shell, for readers and teachers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ddp_workbook.errors import InputError

if TYPE_CHECKING:
    from ddp_workbook.labs.desk import Desk

Name = Annotated[str, tyro.conf.Positional]


def status() -> None:
    """Show the board: for each lab its state, tries, hints and minutes."""
    from ddp_workbook.labs import progress

    print(progress.board(progress.load(_desk().record)))


def check(target: Annotated[str | None, tyro.conf.Positional] = None, output: Path = Path("labs_checked")) -> None:
    """Judge your saved answers, or a folder of submissions; exit code 1 unless all of them are right.

    Args:
        target: A lab: judge labs/answers/<lab>.py. A folder: judge the answers of each submission in it, which runs the
            students' code. Left out: judge all answers in labs/answers.
        output: For a folder: name of the table to write, as <output>.csv and <output>.html.
    """
    from ddp_workbook.labs import catalogue, submissions

    names = [lab.name for lab in catalogue.LABS]
    if target is not None and target not in names and Path(target).is_dir():
        all_right = submissions.check(Path(target), output)
    else:
        all_right = _check_own(names if target is None else [catalogue.find(target).name], asked=target is not None)
    if not all_right:
        sys.exit(1)


def _check_own(names: list[str], asked: bool) -> bool:
    from ddp_workbook.labs import catalogue
    from ddp_workbook.labs.verdict import CannotJudge

    desk, answers = _desk(), {}
    for lab in map(catalogue.find, names):
        source = desk.read(lab)
        if source is not None:
            answers[lab] = source
        elif asked:
            raise InputError(f"{desk.path(lab)} does not exist; ddp-workbook labs reset {lab.name} puts the stub there")
    if not answers:
        raise InputError(f"there is no answer in {desk.answers} yet; ddp-workbook labs reset NAME puts a stub there")
    all_right = True
    for lab, source in answers.items():
        try:
            verdict = desk.attempt(lab, source)
            said, right = desk.describe(lab, verdict, hint=f"ddp-workbook labs hint {lab.name}"), verdict.solved
        except CannotJudge as error:
            said, right = str(error), False
        print(said, flush=True)
        all_right = all_right and right
    return all_right


def hint(name: Name) -> None:
    """Show the next hint of a lab; each further one needs another try first."""
    from ddp_workbook.labs import catalogue, progress

    print(progress.next_hint(_desk().record, catalogue.find(name)))


def solution(name: Name, give_up: bool = False) -> None:
    """Show the reference solution of a lab that is solved.

    Args:
        give_up: Show it before the lab is solved; the record says so.
    """
    from ddp_workbook.labs import catalogue

    print(_desk().solution(catalogue.find(name), give_up))


def reset(name: Name) -> None:
    """Put the stub back as labs/answers/<lab>.py; the old answer is kept beside it."""
    from ddp_workbook.labs import catalogue

    lab, desk = catalogue.find(name), _desk()
    kept = desk.reset(lab)
    print(f"{desk.path(lab)} holds the stub" + (f"; your old answer is in {kept}" if kept else ""))


def _desk() -> Desk:
    from ddp_workbook.labs.desk import Desk, workbook_folder  # here and above: --help need not wait for torch

    return Desk(workbook_folder())


COMMANDS = {"status": status, "check": check, "hint": hint, "solution": solution, "reset": reset}


def labs() -> None:
    """Build the parts of data-parallel training, and have them judged: status, check, hint, solution, reset."""
