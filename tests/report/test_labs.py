"""The report's page on the labs."""

from datetime import UTC, datetime, timedelta

import pytest
from conftest import ROOT
from helper_bad_invocations import finish_course
from test_build import text_of

from ddp_workbook.errors import InputError
from ddp_workbook.records.files import save_record
from ddp_workbook.records.labs import LabEvent, LabHistory, LabsRecord
from ddp_workbook.report.build import build_report

pytestmark = pytest.mark.usefixtures("small_figures")

SOLVED = {"what": "try", "diagnosis": "solved"}


@pytest.fixture
def run_dir(tmp_path):
    """The records of a finished course, in a results folder of its own."""
    folder = tmp_path / "results" / "recipe"
    folder.mkdir(parents=True)
    finish_course(folder)
    return folder


def labs_record(folder, **events):
    """results/labs.json with these events of each lab, and one lab that nobody has begun."""
    day = datetime(2026, 1, 1, tzinfo=UTC)
    labs = {
        name: LabHistory(number=number, title=f"Title of {name}", events=[
            LabEvent(at=day + timedelta(minutes=minute), **event) for minute, event in enumerate(each)
        ])
        for number, (name, each) in enumerate(events.items(), start=1)
    }  # fmt: skip
    labs["later"] = LabHistory(number=20, title="Never begun")
    save_record(LabsRecord(labs=labs), folder / "labs.json")


def test_the_report_has_a_page_on_labs_only_where_one_was_begun(run_dir):
    assert "The labs" not in text_of(build_report(run_dir, ROOT / "report.toml"))
    labs_record(run_dir.parent)
    assert "The labs" not in text_of(build_report(run_dir, ROOT / "report.toml"))
    labs_record(
        run_dir.parent,
        shift=[{"what": "try", "diagnosis": "own-tensor"}, {"what": "hint"}, SOLVED],
        shard=[{"what": "try", "diagnosis": "not-shuffled"}],
        capstone=[{**SOLVED, "lent": ["buckets"]}],
    )
    text = text_of(build_report(run_dir, ROOT / "report.toml"))
    assert "2 of 4 solved" in text
    assert "1 Title of shift solved 2 1 2" in text
    assert "2 Title of shard tried 1 0 0 not shuffled" in text
    assert "20 Never begun open" in text
    assert "Trained with your DDP" in text
    assert "reference solutions stood in for buckets" in text


def test_the_capstone_is_the_reader_s_own_only_if_it_was_solved_without_giving_up(run_dir):
    labs_record(run_dir.parent, capstone=[{"what": "gave up"}, SOLVED])
    assert "Trained with your DDP" not in text_of(build_report(run_dir, ROOT / "report.toml"))
    labs_record(run_dir.parent, capstone=[SOLVED])
    assert "all its parts are the reader's own" in text_of(build_report(run_dir, ROOT / "report.toml"))


def test_a_record_of_labs_that_does_not_fit_is_refused(run_dir):
    (run_dir.parent / "labs.json").write_text('{"labs": {"shift": 3}}')
    with pytest.raises(InputError, match=r"labs\.json does not fit"):
        build_report(run_dir, ROOT / "report.toml")
