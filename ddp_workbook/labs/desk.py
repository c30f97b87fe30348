"""Where answers lie and are judged: one way for notebooks, command line and tests."""

from __future__ import annotations

from pathlib import Path

from ddp_workbook.errors import InputError
from ddp_workbook.labs import catalogue, progress
from ddp_workbook.labs.answer import Answer
from ddp_workbook.labs.lab import Lab, Verdict, judge
from ddp_workbook.labs.verdict import NOT_SOLVED, CannotJudge
from ddp_workbook.records.files import save_text, sha256

LARGEST_ANSWER = 100_000  # characters


def workbook_folder(start: Path | None = None) -> Path:
    """The workbook's folder: this one, or the nearest above it that holds distributed_train.py."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "distributed_train.py").is_file():
            return folder
    raise InputError("this is not the workbook's folder; run it from there, or from its folder labs")


class Desk:
    """The answers and the progress of one reader, in the workbook's folder."""

    def __init__(self, folder: Path) -> None:
        self.answers, self.record = folder / "labs" / "answers", folder / "results" / "labs.json"

    def path(self, lab: Lab) -> Path:
        """The file of an answer."""
        return self.answers / f"{lab.name}.py"

    def read(self, lab: Lab) -> str | None:
        """The answer that is saved, if there is one."""
        path = self.path(lab)
        if not path.is_file():
            return None
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {path} ({error}); save it again as UTF-8 text") from error

    def attempt(self, lab: Lab, source: str) -> Verdict:
        """Save the answer, judge it, and write down the verdict. A stub is neither saved over an answer nor counted.

        Raises InputError for an answer that is too long, CannotJudge, which says so, without counting a try.
        """
        check_length(source)
        progress.load(self.record)  # a record that cannot be read is refused before the work
        if _same(source, catalogue.stub(lab)):
            if self.read(lab) is None:
                save_text(source, self.path(lab))
            return Verdict(False, NOT_SOLVED, "not solved yet", 0.0)
        save_text(source, self.path(lab))
        answer = self.answer(lab, source)
        try:
            verdict = judge(lab, answer)
        except CannotJudge as error:
            raise CannotJudge(f"{lab.name}: not judged, and not counted as a try: {error}") from error
        progress.add_try(self.record, lab, answer, verdict)
        return verdict

    def describe(self, lab: Lab, verdict: Verdict, hint: str) -> str:
        """What to say of a try. `hint`: how the reader asks for one."""
        row = progress.lab_row(lab, self.record)
        if verdict.diagnosis == NOT_SOLVED:
            return f"{lab.name}: {verdict.message}"
        if verdict.solved:
            lent = f" The reference solution stood in for {', '.join(row.lent)}." if row.lent else ""
            return f"{lab.name}: {verdict.message}.{lent}"
        stuck = "" if row.state != "tried" or row.hints else f"\nStuck? {hint}"
        return f"{lab.name}: not right yet. {verdict.message}{stuck}"

    def answer(self, lab: Lab, source: str) -> Answer:
        """The answer with the earlier ones that it may use.

        An earlier lab gives the reader's own code if that is what was judged right, else the reference solution.
        """
        record = progress.load(self.record)
        earlier = []
        for used in map(catalogue.find, lab.uses):
            own = self.read(used)
            right = {event.answer for event in record.labs[used.name].events if event.diagnosis == "solved"}
            earlier.append(catalogue.answer(used, own if own is not None and sha256(own.encode()) in right else None))
        return catalogue.answer(lab, source, earlier)

    def solution(self, lab: Lab, give_up: bool) -> str:
        """The reference solution. Raises InputError before the lab is solved, unless the reader gives up."""
        if not give_up and progress.lab_row(lab, self.record).state not in ("solved", "gave up"):
            raise InputError(f"{lab.name} is not solved yet; to see its solution, give up (give_up=True, or --give-up)")
        progress.give_up(self.record, lab)
        return catalogue.solution(lab)

    def reset(self, lab: Lab) -> Path | None:
        """Put the stub back as the answer; what was tried stays in the record. Returns where the old answer is kept."""
        old = self.read(lab)
        kept = None
        if old is not None and not _same(old, catalogue.stub(lab)):
            kept = self.path(lab).with_suffix(".before_reset.py")
            save_text(old, kept)
        save_text(catalogue.stub(lab), self.path(lab))
        return kept


def check_length(source: str) -> None:
    """Raise InputError for an answer that cannot be one."""
    if len(source) > LARGEST_ANSWER:
        raise InputError(f"an answer has at most {LARGEST_ANSWER} characters, this one {len(source)}")


def _same(source: str, stub: str) -> bool:
    return source.split() == stub.split()
