"""Where answers lie and are judged: one way for notebooks, command line and tests."""

from __future__ import annotations

from pathlib import Path

from ddp_workbook.errors import InputError
from ddp_workbook.labs import catalogue, progress
from ddp_workbook.labs.answer import Answer
from ddp_workbook.labs.lab import Lab, Verdict, judge
from ddp_workbook.records.files import save_text

LARGEST_ANSWER = 100_000  # characters


def workbook_folder(start: Path | None = None) -> Path:
    """The workbook's folder: this one, or the nearest above it that holds distributed_train.py."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "distributed_train.py").is_file():
            return folder
    raise InputError("this is not the workbook's folder; run it from there, or from its folder labs")


class Desk:
    """The answers and the progress of one reader."""

    def __init__(self, folder: Path) -> None:
        self.answers, self.record = folder / "labs" / "answers", folder / "results" / "labs.json"

    def path(self, lab: Lab) -> Path:
        """The file of an answer."""
        return self.answers / f"{lab.name}.py"

    def attempt(self, lab: Lab, source: str) -> Verdict:
        """Save the answer, judge it, and write down the verdict. Raises CannotJudge without counting a try."""
        if len(source) > LARGEST_ANSWER:
            raise InputError(f"an answer has at most {LARGEST_ANSWER} characters, this one {len(source)}")
        progress.load(self.record)  # a record that cannot be read is refused before the work
        save_text(source, self.path(lab))
        answer, lent = self.answer(lab, source)
        verdict = judge(lab, answer)
        progress.add_try(self.record, lab, source, verdict, lent)
        return verdict

    def answer(self, lab: Lab, source: str) -> tuple[Answer, list[str]]:
        """The answer with the earlier ones that it may use, and the names of those that are lent.

        An earlier lab that the reader has solved gives the reader's own code, another one the reference solution.
        """
        record = progress.load(self.record)
        earlier, lent = {}, []
        for name in lab.uses:
            used = catalogue.find(name)
            if progress.row(used, record).solved and self.path(used).is_file():
                earlier[f"<answer {name}>"] = self.path(used).read_text(encoding="utf-8")
            else:
                earlier[f"<solution {name}>"] = catalogue.solution(used)
                lent.append(name)
        return Answer(lab.name, source, lab.defines, earlier), lent

    def solution(self, lab: Lab, give_up: bool) -> str:
        """The reference solution. Raises InputError before the lab is solved, unless the reader gives up."""
        if not give_up and not progress.row(lab, progress.load(self.record)).solved:
            raise InputError(f"{lab.name} is not solved yet; say that you give up to see the solution")
        progress.give_up(self.record, lab)
        return catalogue.solution(lab)

    def reset(self, lab: Lab) -> Path:
        """Put the stub back as the answer; what was tried stays in the record."""
        save_text(catalogue.stub(lab), self.path(lab))
        return self.path(lab)
