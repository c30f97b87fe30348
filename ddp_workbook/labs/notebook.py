"""The labs inside a notebook: the %%lab magic, and hint(), solution() and status()."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from IPython.core.interactiveshell import InteractiveShell

from ddp_workbook.distributed import processes
from ddp_workbook.errors import InputError
from ddp_workbook.labs import catalogue, progress
from ddp_workbook.labs.desk import Desk, workbook_folder
from ddp_workbook.labs.verdict import CannotJudge


def load_ipython_extension(shell: InteractiveShell) -> None:
    """%load_ext ddp_workbook.labs.notebook"""
    with suppress(InputError):  # the first judged answer says it
        processes.prepare()
    shell.register_magic_function(_lab, magic_kind="cell", magic_name="lab")
    shell.push({"hint": hint, "solution": solution, "status": status})


def _lab(line: str, cell: str) -> None:
    """%%lab NAME: save the cell as the answer of this lab, and judge it."""

    def verdict() -> str:
        desk, lab = _desk(), catalogue.find(line.strip())
        return desk.describe(lab, desk.attempt(lab, cell), hint=f"hint({lab.name!r})")

    _say(verdict)


def hint(name: str) -> None:
    """Print the next hint of a lab."""
    _say(lambda: progress.next_hint(_desk().record, catalogue.find(name)))


def solution(name: str, give_up: bool = False) -> None:
    """Print the reference solution of a lab that is solved, or given up."""
    _say(lambda: _desk().solution(catalogue.find(name), give_up))


def status() -> None:
    """Print the board."""
    _say(lambda: progress.board(progress.load(_desk().record)))


def _desk() -> Desk:
    return Desk(workbook_folder())


def _say(text: Callable[[], str]) -> None:
    try:
        print(text())
    except (InputError, CannotJudge) as error:
        print(error)
