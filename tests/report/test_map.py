"""The batch map in the report: its sentences and its figure, and left out where it is of another machine."""

import pytest
from conftest import ROOT
from helper_bad_invocations import finish_course
from helper_map import curve_map
from pypdf import PdfReader

from ddp_workbook.errors import InputError
from ddp_workbook.records.files import save_record
from ddp_workbook.report.build import build_report
from ddp_workbook.report.costs import costs_content
from ddp_workbook.report.inputs import load_inputs


def report_with(record, folder):
    """The text of the report of a finished course with this batch map."""
    finish_course(folder)
    save_record(record, folder / "batch_map.json")
    pages = PdfReader(build_report(folder, ROOT / "report.toml")).pages
    return " ".join(" ".join(page.extract_text() for page in pages).split())


@pytest.fixture
def record():
    """A map of the course's own network that crosses 1 at 90.5 images."""
    found = curve_map([16, 32, 64, 128], [0.75, 0.85, 0.95, 1.05])
    return found.model_copy(update={"networks": [found.networks[0].model_copy(update={"model": "resnet50"})]})


def test_the_report_says_from_which_batch_on_it_pays(record, tmp_path):
    text = report_with(record, tmp_path)
    assert "From which batch on it pays" in text
    assert "on this machine 2 processes pay from a global batch of 91 [91, 91] images." in text


def test_a_map_of_another_machine_is_left_out_and_named(record, tmp_path):
    machine = record.environment.model_copy(update={"cores": 8, "torch": "2.10"})
    finish_course(tmp_path)
    save_record(record.model_copy(update={"environment": machine}), tmp_path / "batch_map.json")
    content = costs_content(load_inputs(tmp_path))
    assert content["map"] is None
    assert content["other_map"] == "cores, torch"


def test_a_map_that_does_not_fit_is_refused(record, tmp_path):
    with pytest.raises(InputError, match=r"batch_map\.json does not fit: processes"):
        report_with(record.model_copy(update={"processes": 1}), tmp_path)
