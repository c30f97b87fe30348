"""The lab notebooks as a reader runs them: with the stubs, and with right answers in their cells."""

import re
import shutil

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

from ddp_workbook.course.runner import stale_reason
from ddp_workbook.labs import catalogue

NAMES = sorted(path.name for path in (ROOT / "labs").glob("*.ipynb"))
MAGIC = re.compile(r"%%lab (\w+)\n")


def read(name):
    return nbformat.read(ROOT / "labs" / name, as_version=4)


def lab_cells(notebook):
    """The cells of labs by name."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return {found[1]: cell for cell in code if (found := MAGIC.match(cell.source))}


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.fixture(scope="module")
def workbook(tmp_path_factory):
    """A folder in which the notebooks think that they are at home."""
    folder = tmp_path_factory.mktemp("workbook")
    (folder / "labs").mkdir()
    shutil.copy(ROOT / "distributed_train.py", folder)
    return folder


def run(notebook, folder):
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder / "labs")}}).execute()
    return lab_cells(notebook)


def test_all_labs_are_in_the_notebooks_in_order_with_their_stubs():
    cells = [pair for name in NAMES for pair in lab_cells(read(name)).items()]
    assert [name for name, _ in cells] == [lab.name for lab in catalogue.LABS]
    for name, cell in cells:
        assert cell.source == f"%%lab {name}\n{catalogue.stub(catalogue.find(name)).strip()}"


@pytest.mark.parametrize("name", NAMES)
def test_with_stubs_every_lab_says_so_and_the_notebook_runs_to_its_end(name, workbook):
    notebook = read(name)
    cells = run(notebook, workbook)
    assert {lab: printed(cell) for lab, cell in cells.items()} == {lab: f"{lab}: not solved yet\n" for lab in cells}
    assert f"0 of {len(catalogue.LABS)} solved" in printed(notebook.cells[-1])
    shutil.rmtree(workbook / "labs" / "answers")


@pytest.mark.parametrize("name", NAMES)
def test_with_right_answers_every_lab_is_solved(name, workbook):
    notebook = read(name)
    for lab, cell in lab_cells(notebook).items():
        cell.source = f"%%lab {lab}\n{catalogue.solution(catalogue.find(lab))}"
    others = ("%load_ext", "status()")
    notebook.cells = [cell for cell in notebook.cells if MAGIC.match(cell.source) or cell.source.startswith(others)]
    cells = run(notebook, workbook)
    assert cells and all(printed(cell).startswith(f"{lab}: solved (") for lab, cell in cells.items())
    assert "stood in for" not in "".join(map(printed, cells.values()))


@pytest.mark.parametrize("name", NAMES)
def test_committed_outputs_come_from_one_run_of_the_stubs(name):
    assert stale_reason(ROOT / "labs" / name) is None
    cells = lab_cells(read(name))
    assert {lab: printed(cell) for lab, cell in cells.items()} == {lab: f"{lab}: not solved yet\n" for lab in cells}
    assert not [lab for lab, cell in cells.items() if len(cell.source.splitlines()) > 30]


@pytest.mark.parametrize("name", NAMES)
def test_prose_says_what_a_lab_needs_and_its_links_lead_somewhere(name):
    notebook = read(name)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    labs = [lab for lab in catalogue.LABS if lab.name in lab_cells(notebook)]
    assert re.findall(r"^## Lab (\d+): (.*)$", prose, re.MULTILINE) == [(str(lab.number), lab.title) for lab in labs]
    for lab in labs:
        section = prose.split(f"## Lab {lab.number}: ")[1].split("\n## ")[0]
        assert f"about {lab.minutes} minutes" in section
        assert all(part in section for part in ("**Goal.**", "**Right means:**", "<details>"))
    assert "AI assistant" in prose
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", prose)
    assert not [t for t in targets if not t.startswith("http") and not (ROOT / "labs" / t).exists()]
