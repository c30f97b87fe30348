"""The course on networks without BatchNorm: all four notebooks and the report, shortened. `make test-courses`."""

import re
import shutil

import nbformat
import pytest
from conftest import ROOT
from pypdf import PdfReader

from ddp_workbook.course.runner import COURSE, run_course
from ddp_workbook.specs import MODELS

FEW = {"EPOCHS": 2, "PAIRS": 4, "ROUNDS": 2, "BATCHES": (8, 16), "BATCH_ROUNDS": 2}
OF_RESNET = "ResNet|BatchNorm|Nesterov"  # what these networks and their recipes do not have


@pytest.fixture(scope="module", params=["vit", "lstm"])
def course(request, tmp_path_factory):
    """The name of the network, and the folder of its course on the embedded data set."""
    folder = tmp_path_factory.mktemp(request.param)
    for name in (*COURSE, "distributed_train.py", "report.toml"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "examples", folder / "examples")
    run_course(folder, folder / "out", {"RECIPE": f"{request.param}-digits"} | FEW)
    return request.param, folder


def test_the_cells_print_nothing_about_another_network(course):
    """Except where other networks are timed or compared on purpose: the sweep, and the programs of %%ranks."""
    _, folder = course
    found = []
    for name in COURSE[1:]:
        for cell in nbformat.read(folder / "out" / name, as_version=4).cells:
            texts = [output.get("text", "") for output in cell.get("outputs", []) if output.output_type == "stream"]
            if not re.search("sweep|checks|%%ranks|# NEW", cell.source):
                found += re.findall(f".*(?:{OF_RESNET}).*", "".join(texts))
    assert found == []


def test_the_report_describes_this_network(course):
    model, folder = course
    pages = PdfReader(folder / "results" / f"{model}-digits" / "report.pdf").pages
    text = re.sub(r"\s+", " ", " ".join(page.extract_text() for page in pages))
    own = text.split("A cost model")[0]
    assert re.findall(f".{{40}}(?:{OF_RESNET}).{{40}}", own) == []
    assert MODELS[model].title in own
    assert {"vit": "LayerNorm", "lstm": "LSTM layers"}[model] in own
