"""Answers, progress and the board: nothing of the reader's is lost, and nothing counts as right that was not judged."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from conftest import ROOT

from ddp_workbook.analysis.lab_progress import row
from ddp_workbook.errors import InputError
from ddp_workbook.labs import catalogue, desk, progress
from ddp_workbook.labs.lab import Verdict
from ddp_workbook.labs.verdict import CannotJudge
from ddp_workbook.records.labs import LabEvent, LabHistory

LAB = catalogue.LABS[0]
LATER = replace(catalogue.LABS[1], uses=(LAB.name,))
SOLVED, WRONG = Verdict(True, "solved", "solved (5 comparisons)", 0.5), Verdict(False, "mean", "every element is", 0.5)


@pytest.fixture
def at_desk(tmp_path):
    return desk.Desk(tmp_path)


def try_answer(at_desk, lab, source):
    """The answer judged, and what is said of it."""
    return at_desk.describe(lab, at_desk.attempt(lab, source), hint=f"hint({lab.name!r})")


@pytest.fixture
def verdicts(monkeypatch):
    """What the judge says next; it keeps the answers that it was given."""
    coming, given = [], []

    def judge(_, answer):
        given.append(answer)
        verdict = coming.pop(0)
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    monkeypatch.setattr(desk, "judge", judge)
    return coming, given


def test_a_stub_is_no_try_and_never_replaces_an_answer(at_desk, verdicts):
    stub = catalogue.stub(LAB)
    assert try_answer(at_desk, LAB, stub) == f"{LAB.name}: not solved yet"
    assert at_desk.read(LAB) == stub
    verdicts[0].append(WRONG)
    at_desk.attempt(LAB, "def shift(): pass")
    assert not at_desk.attempt(LAB, stub + "\n\n").solved
    assert at_desk.read(LAB) == "def shift(): pass"
    assert progress.lab_row(LAB, at_desk.record).tries == 1


def test_a_judge_that_cannot_run_counts_no_try(at_desk, verdicts):
    verdicts[0].append(CannotJudge("no port is free"))
    with pytest.raises(CannotJudge, match="shift: not judged, and not counted as a try: no port is free"):
        at_desk.attempt(LAB, "def shift(): pass")
    row = progress.lab_row(LAB, at_desk.record)
    assert (row.state, row.tries) == ("open", 0)


def test_tries_hints_and_the_solution(at_desk, verdicts):
    verdicts[0].extend([WRONG, WRONG, SOLVED])
    with pytest.raises(InputError, match="not solved yet"):
        at_desk.solution(LAB, give_up=False)
    first = try_answer(at_desk, LAB, "one")
    assert first.splitlines() == [f"{LAB.name}: not right yet. every element is", f"Stuck? hint({LAB.name!r})"]
    assert progress.next_hint(at_desk.record, LAB).startswith("hint 1 of 3: ")
    with pytest.raises(InputError, match="once more with the last hint"):
        progress.next_hint(at_desk.record, LAB)
    assert "hint(" not in try_answer(at_desk, LAB, "two")
    assert progress.next_hint(at_desk.record, LAB).startswith("hint 2 of 3: ")
    assert try_answer(at_desk, LAB, "three") == f"{LAB.name}: solved (5 comparisons)."
    assert at_desk.solution(LAB, give_up=False) == catalogue.solution(LAB)
    row = progress.lab_row(LAB, at_desk.record)
    assert (row.state, row.tries, row.hints) == ("solved", 3, 2)
    assert "1 of" in progress.board(progress.load(at_desk.record)).splitlines()[-1]


def test_giving_up_is_kept_even_when_the_solution_is_handed_in(at_desk, verdicts):
    assert at_desk.solution(LAB, give_up=True) == catalogue.solution(LAB)
    verdicts[0].append(SOLVED)
    at_desk.attempt(LAB, catalogue.solution(LAB))
    assert progress.lab_row(LAB, at_desk.record).state == "gave up"
    assert progress.board(progress.load(at_desk.record)).splitlines()[-1].endswith("1 given up")


def test_a_solved_lab_stays_solved_after_a_wrong_try(at_desk, verdicts):
    verdicts[0].extend([SOLVED, WRONG])
    at_desk.attempt(LAB, "right")
    at_desk.attempt(LAB, "wrong")
    row = progress.lab_row(LAB, at_desk.record)
    assert (row.state, row.tries, row.last) == ("solved", 1, "solved")


def test_later_labs_use_what_was_judged_right_and_nothing_else(at_desk, verdicts):
    """The reader's own answer, unless it was changed after the verdict; else the reference solution, which is said."""
    used = catalogue.find(LATER.uses[0])
    verdicts[0].extend([SOLVED] * 4)
    at_desk.attempt(LATER, "first")
    [lent] = verdicts[1][-1].earlier
    assert (lent.source, lent.lent) == (catalogue.solution(used), True)
    assert used.name in progress.lab_row(LATER, at_desk.record).lent
    at_desk.attempt(used, "my own")
    at_desk.attempt(LATER, "second")
    [own] = verdicts[1][-1].earlier
    assert (own.source, own.lent) == ("my own", False)
    at_desk.path(used).write_text("changed afterwards")
    at_desk.attempt(LATER, "third")
    assert verdicts[1][-1].earlier[0].lent


def test_reset_keeps_the_old_answer(at_desk, verdicts):
    assert at_desk.reset(LAB) is None
    assert at_desk.read(LAB) == catalogue.stub(LAB)
    verdicts[0].append(SOLVED)
    at_desk.attempt(LAB, "my own")
    kept = at_desk.reset(LAB)
    assert kept.read_text() == "my own"
    assert at_desk.read(LAB) == catalogue.stub(LAB)
    assert progress.lab_row(LAB, at_desk.record).state == "solved"


def test_a_corrupt_record_is_refused_before_the_work_and_kept(at_desk, verdicts):
    at_desk.record.parent.mkdir()
    at_desk.record.write_text('{"labs": 1}')
    with pytest.raises(InputError, match=r"labs\.json does not fit"):
        at_desk.attempt(LAB, "right")
    assert at_desk.record.read_text() == '{"labs": 1}'
    assert at_desk.read(LAB) is None
    assert verdicts[1] == []


def test_a_very_long_answer_is_refused(at_desk):
    with pytest.raises(InputError, match="at most 100000 characters"):
        at_desk.attempt(LAB, "x" * 100_001)


def test_the_workbook_is_found_from_its_folders(tmp_path):
    (tmp_path / "distributed_train.py").touch()
    (tmp_path / "labs" / "answers").mkdir(parents=True)
    assert desk.workbook_folder(tmp_path / "labs" / "answers") == tmp_path
    with pytest.raises(InputError, match="not the workbook's folder"):
        desk.workbook_folder(tmp_path.parent)


def test_minutes_are_without_breaks_and_end_with_the_solution():
    start = datetime(2026, 1, 1, tzinfo=UTC)
    minutes = (0, 4, 40, 45, 50)  # 36 minutes without anything are a break
    whats = [{"what": "hint"}, *({"what": "try", "diagnosis": each} for each in ("a", "b", "solved", "c"))]
    events = [
        LabEvent(at=start + timedelta(minutes=minute), **what) for minute, what in zip(minutes, whats, strict=True)
    ]
    found = row("x", LabHistory(number=1, title="X", events=events))
    assert (found.minutes, found.tries, found.hints, found.last) == (9.0, 3, 1, "solved")


def test_two_notebooks_at_the_same_time_lose_no_try(at_desk):
    def use(_):
        for _ in range(10):
            progress.add_try(at_desk.record, LAB, catalogue.answer(LAB, "x"), WRONG)

    with ThreadPoolExecutor(4) as readers:
        list(readers.map(use, range(4)))
    assert progress.lab_row(LAB, at_desk.record).tries == 40


def test_the_page_for_teachers_has_every_lab_with_its_facts():
    text = (ROOT / "labs" / "TEACHERS.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    table = {row[0]: row for row in rows if len(row) == 6}
    for lab in catalogue.LABS:
        _, defines, minutes, difficulty, ranks, uses = table[f"{lab.number} {lab.name}"]
        assert defines == ", ".join(f"`{name}`" for name in lab.defines)
        assert (int(minutes), difficulty.count("●")) == (lab.minutes, lab.difficulty)
        assert [int(word) for word in ranks.split() if word.isdigit()] == sorted(
            {part.ranks for part in lab.parts if part.ranks > 1}
        )
        assert uses == ", ".join(str(catalogue.find(name).number) for name in lab.uses)
