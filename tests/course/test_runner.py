"""The course as a reader runs it: four notebooks in order, in a temporary copy; and the runner itself."""

import json
import re
import time
import tomllib
from types import SimpleNamespace

import nbformat
import pytest
from conftest import ROOT
from helper_whole_course import check_the_report_describes, run_whole_course, words_about_another_network
from pypdf import PdfReader

from ddp_workbook.course import runner
from ddp_workbook.course.runner import COURSE, NotebookError, parameters_of, run_notebook, stale_reason
from ddp_workbook.errors import InputError
from ddp_workbook.records.course import CourseSummary, NotebookTimes
from ddp_workbook.records.files import load_record

WRITTEN = [
    "baseline_metrics.json", "baseline_history.json", "distributed_metrics.json", "distributed_history.json",
    "baseline_training_curves.png", "confusion_matrix.png", "per_class_accuracy.png",
    "baseline_vs_distributed_comparison.png", "speedup_analysis.png", "performance_comparison.csv",
    "classification_report.txt", "test_summary.json", "benchmark.json", "benchmark_weak.json", "report.pdf",
    "step_breakdown.json", "step_breakdown_shared_memory.json", "batch_sweep.json", "sync_cost.png",
    "step_timeline.png", "scaling_comparison.png", "all_reduce.png", "pay_panels.png", "predicted_speedup.png",
    "prediction.png", "training_plots_worldsize_2.png", "restart.png",
]  # fmt: skip


RECIPE = "vit-digits"  # tests/courses has others


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """All four notebooks on embedded data, one epoch, few measurements."""
    folder = tmp_path_factory.mktemp("course")
    run_whole_course(folder, RECIPE)
    return folder


@pytest.mark.parametrize("name", COURSE)
def test_a_notebook_runs_through(course, name):
    notebook = nbformat.read(course / "out" / name, as_version=4)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("this notebook took" in output.get("text", "") for output in outputs)


@pytest.mark.parametrize("name", WRITTEN)
def test_the_course_writes_its_files(course, name):
    assert (course / "results" / RECIPE / name).stat().st_size > 100


def test_the_conclusions_follow_from_the_records(course):
    folder = course / "results" / RECIPE
    summary = load_record(CourseSummary, folder / "test_summary.json")
    run = json.loads((folder / "distributed_metrics.json").read_text())
    speedup = summary.speedups[0].speedup
    assert summary.distributed.accuracy.value == run["test_accuracy"]
    assert speedup.low <= speedup.value <= speedup.high
    text = " ".join(page.extract_text() for page in PdfReader(folder / "report.pdf").pages)
    assert f"{100 * run['test_accuracy']:.2f} %" in text
    times = load_record(NotebookTimes, folder / "notebook_times.json").seconds
    assert set(times) == {name.removesuffix(".ipynb") for name in COURSE}


def test_it_is_about_its_own_network(course):
    assert words_about_another_network(course) == []
    check_the_report_describes("vit", course)


def test_a_second_run_reuses_the_finished_one(course):
    folder = course / "results" / RECIPE
    before = (folder / "baseline_metrics.json").read_bytes()
    run_notebook(course / COURSE[1], course / "again.ipynb", {}, started=0)
    assert (folder / "baseline_metrics.json").read_bytes() == before
    text = (course / "again.ipynb").read_text()
    assert "this run finished at" in text


def small_notebook(tmp_path, *sources, tag="parameters"):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    notebook.cells[0].metadata["tags"] = [tag]
    nbformat.write(notebook, tmp_path / "n.ipynb")
    return tmp_path / "n.ipynb"


def test_parameters_are_injected_and_unknown_ones_refused(tmp_path):
    path = small_notebook(tmp_path, 'A = 1\nB = "x"', "print(A, B)")
    assert parameters_of(nbformat.read(path, as_version=4)) == {"A": 1, "B": "x"}
    run_notebook(path, tmp_path / "out.ipynb", {"A": 5}, started=0)
    assert nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[2].outputs[0].text == "5 x\n"
    with pytest.raises(InputError, match="unknown notebook parameter C; choose one of: A, B"):
        run_notebook(path, tmp_path / "out.ipynb", {"C": 5}, started=0)


def test_a_failing_cell_is_reported_and_the_notebook_kept(tmp_path):
    path = small_notebook(tmp_path, "A = 1", "print('so far')", "1 / 0")
    with pytest.raises(NotebookError, match=r"n\.ipynb failed: ZeroDivisionError: division by zero"):
        run_notebook(path, tmp_path / "out.ipynb", {}, started=0)
    assert "so far" in (tmp_path / "out.ipynb").read_text()


BAR = """
import sys
from tqdm import tqdm
bar = tqdm(total=2, file=sys.stdout, leave=False)
for _ in range(2):
    bar.update()
bar.write("three", file=sys.stdout)
bar.close()
"""


def test_the_runner_shows_cells_and_what_slow_ones_print(tmp_path, monkeypatch, capsys):
    path = small_notebook(tmp_path, "A = 1", "print('one')\n2 + 2", "print('two')\nprint()" + BAR)
    for seconds, expected in ((1000, []), (0, ["        one", "        two", "        three"])):
        monkeypatch.setattr(runner, "SECONDS_WITHOUT_OUTPUT", seconds)
        run_notebook(path, tmp_path / "out.ipynb", {}, started=time.monotonic())
        lines = [re.sub(r"^\[ 0:\d\d\]", "[ m:ss]", line) for line in capsys.readouterr().out.splitlines()]
        firsts = enumerate(("A = 1", "print('one')", "print('two')"), start=1)
        cells = [f"[ m:ss] n  cell {number}/3  {first}" for number, first in firsts]
        assert [line for line in lines if line.startswith("[")] == cells
        assert [line for line in lines if not line.startswith("[")] == expected
    assert lines.index(cells[1]) < lines.index("        one") < lines.index(cells[2])


def test_a_cell_is_slow_from_its_own_start(tmp_path, monkeypatch, capsys):
    """The clock stands where the test sets it; messages are those that a kernel sends."""
    notebook = nbformat.read(small_notebook(tmp_path, "A = 1", "B = 2"), as_version=4)
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(runner.time, "monotonic", lambda: clock.now)
    client = runner._Client(notebook, "n", 40.0, tmp_path)
    monkeypatch.setattr(runner.NotebookClient, "process_message", lambda *_: None)  # what keeps outputs, in a kernel

    def message(index, seconds, text, name="stdout"):
        clock.now += seconds
        stream = {"msg_type": "stream", "content": {"name": name, "text": text}}
        client.process_message(stream, notebook.cells[index], index)

    client.on_cell_start(notebook.cells[0], 0)
    message(0, 5, "too early\n")
    message(0, 0.1, "la")
    message(0, 0.1, "te\n\r 10 %\r 20 %")
    message(0, 0.1, "\r     \rlater\n\r 30 %")
    message(0, 0.1, "a warning\n", name="stderr")
    client.on_cell_start(notebook.cells[1], 1)
    message(1, 4.9, "too early\n")
    assert capsys.readouterr().out.splitlines() == [
        "[ 1:00] n  cell 1/2  A = 1",
        "        late",
        "        later",
        "[ 1:05] n  cell 2/2  B = 2",
    ]


def test_outputs_that_are_not_of_the_present_cells_are_found(tmp_path):
    path = small_notebook(tmp_path, "A = 1", "A + 1")
    assert stale_reason(path) == "the cells were not run once each, in order"
    run_notebook(path, path, {}, started=0)
    assert stale_reason(path) is None
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].source = "A + 2"
    nbformat.write(notebook, path)
    assert stale_reason(path) == "a cell was changed after the outputs were made"


@pytest.mark.parametrize("name", COURSE)
def test_committed_outputs_come_from_one_run_of_the_present_cells(name):
    assert stale_reason(ROOT / name) is None


@pytest.mark.parametrize("name", COURSE)
def test_spine_and_limits(name):
    notebook = nbformat.read(ROOT / name, as_version=4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert all(part in prose for part in ("**You need**", "**Time.**", "## Exercises", "**Summary.**"))
    assert prose.count("<details><summary>Answer</summary>") == prose.count("</details>") >= 4
    assert "notebook.begin(" in code[0]
    assert "notebook.finish(" in "".join(code[-2:])
    assert not [source for source in code if len(list(filter(str.strip, source.splitlines()))) > 20]
    assert not re.search(r"[\U0001F300-\U0001FAFF]", prose)
    assert len(notebook.cells) <= (35 if name.startswith("04") else 60)


@pytest.mark.parametrize("name", COURSE)
def test_text_stands_beside_every_code_cell(name):
    """What to look for in its output is said just before or just after."""
    kinds = [cell.cell_type for cell in nbformat.read(ROOT / name, as_version=4).cells]
    lonely = [i for i in range(3, len(kinds)) if set(kinds[i - 1 : i + 2]) == {"code"}]
    assert not lonely


def test_links_in_prose_lead_somewhere():
    """Files that the notebooks link to are there."""
    for name in COURSE:
        cells = nbformat.read(ROOT / name, as_version=4).cells
        prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", prose)
        assert not [target for target in targets if not target.startswith("http") and not (ROOT / target).exists()]


def test_committed_notebooks_show_the_full_course():
    first = nbformat.read(ROOT / COURSE[0], as_version=4)
    assert parameters_of(first)["RECIPE"] == "resnet50-cifar10"
    assert "resnet50-cifar10: 50,000 training" in (ROOT / COURSE[0]).read_text()


def test_packages_of_the_mission_are_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[>=<]", line)[0] for line in project["dependencies"]}
    assert {"torch", "torchvision", "jupyter", "matplotlib", "seaborn", "pandas", "scikit-learn"} <= names
