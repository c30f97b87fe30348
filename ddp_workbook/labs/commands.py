"""`ddp-workbook labs status | check | hint | solution | reset`: the labs from a shell, for readers and teachers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro

from ddp_workbook.errors import InputError

Name = Annotated[str, tyro.conf.Positional]


def status() -> None:
    """Show the board: for each lab its state, tries, hints and minutes."""
    from ddp_workbook.labs import progress
    from ddp_workbook.labs.desk import Desk, workbook_folder

    print(progress.board(progress.load(Desk(workbook_folder()).record)))


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
    from ddp_workbook.labs.desk import Desk, workbook_folder
    from ddp_workbook.labs.notebook import try_answer

    desk, answers = Desk(workbook_folder()), {}
    for lab in map(catalogue.find, names):
        source = desk.read(lab)
        if source is not None:
            answers[lab] = source
        elif asked:
            raise InputError(f"{desk.path(lab)} does not exist; ddp-workbook labs reset {lab.name} puts the stub there")
    if not answers:
        raise InputError(f"there is no answer in {desk.answers} yet; ddp-workbook labs reset NAME puts a stub there")
    right = True
    for lab, source in answers.items():
        said = try_answer(desk, lab, source, hint="ddp-workbook labs hint {}")
        print(said, flush=True)
        right = right and ": solved (" in said
    return right


def hint(name: Name) -> None:
    """Show the next hint of a lab; each further one needs another try first."""
    from ddp_workbook.labs import catalogue, progress
    from ddp_workbook.labs.desk import Desk, workbook_folder

    print(progress.next_hint(Desk(workbook_folder()).record, catalogue.find(name)))


def solution(name: Name, give_up: bool = False) -> None:
    """Show the reference solution of a lab that is solved.

    Args:
        give_up: Show it before the lab is solved; the record says so.
    """
    from ddp_workbook.labs import catalogue
    from ddp_workbook.labs.desk import Desk, workbook_folder

    print(Desk(workbook_folder()).solution(catalogue.find(name), give_up))


def reset(name: Name) -> None:
    """Put the stub back as labs/answers/<lab>.py; the old answer is kept beside it."""
    from ddp_workbook.labs import catalogue
    from ddp_workbook.labs.desk import Desk, workbook_folder

    lab, desk = catalogue.find(name), Desk(workbook_folder())
    kept = desk.reset(lab)
    print(f"{desk.path(lab)} holds the stub" + (f"; your old answer is in {kept}" if kept else ""))


COMMANDS = {"status": status, "check": check, "hint": hint, "solution": solution, "reset": reset}


def labs() -> None:
    """Build the parts of data-parallel training, and have them judged: status, check, hint, solution, reset."""
