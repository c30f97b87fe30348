"""The judges, tested by answers: each wrong one gets the diagnosis that its file is named after, each right one passes.

`make test` judges the stub, the solution and one wrong answer of each lab; `make test-labs` all of them.
"""

from pathlib import Path

import pytest
from helper_tries import LAB_TRIES

from ddp_workbook.labs import catalogue
from ddp_workbook.labs.lab import Lab, Verdict, judge

ANSWERS = Path(__file__).parent / "answers"
SHORT = 1  # wrong answers of each lab in the short form


def cases() -> list:
    found = []
    for lab in catalogue.LABS:
        right, wrong = (sorted((ANSWERS / lab.name / kind).glob("*.py")) for kind in ("right", "wrong"))
        if not LAB_TRIES:
            right, wrong = [], wrong[:SHORT]
        sources = [("stub", catalogue.stub(lab), "not-solved"), ("solution", catalogue.solution(lab), "solved")]
        sources += [(path.stem, path.read_text(encoding="utf-8"), "solved") for path in right]
        sources += [(path.stem, path.read_text(encoding="utf-8"), path.stem.split("--")[0]) for path in wrong]
        found += [
            pytest.param(lab, source, expected, id=f"{lab.name}-{name}-{number}")
            for number in range(max(1, LAB_TRIES))
            for name, source, expected in sources
        ]
    return found


def verdict_on(lab: Lab, source: str) -> Verdict:
    earlier = [catalogue.answer(catalogue.find(name), None) for name in lab.uses]
    return judge(lab, catalogue.answer(lab, source, earlier))


@pytest.mark.parametrize("lab, source, expected", cases())
def test_each_answer_gets_its_own_diagnosis(lab, source, expected):
    verdict = verdict_on(lab, source)
    assert verdict.diagnosis == expected, verdict.message
    assert verdict.solved == (expected == "solved")


@pytest.mark.parametrize("lab", catalogue.LABS, ids=lambda lab: lab.name)
def test_each_lab_has_its_files(lab):
    assert len(catalogue.hints(lab)) == 3
    assert len(list((ANSWERS / lab.name / "wrong").glob("*.py"))) >= 5
    assert (ANSWERS / lab.name / "right").is_dir()  # beside the solution, which is a right answer as well
