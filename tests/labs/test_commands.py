"""ddp-workbook labs: for one reader, and for a class."""

import csv

import nbformat
import pytest

from ddp_workbook import cli
from ddp_workbook.labs import catalogue, submissions
from ddp_workbook.labs.verdict import CannotJudge

LAB = catalogue.LABS[0]
OWN = "def shift(mine, wire):\n    return mine\n"


@pytest.fixture
def workbook(tmp_path, monkeypatch):
    """An empty workbook as the current folder."""
    (tmp_path / "distributed_train.py").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(monkeypatch, capsys):
    """call(arguments): exit code and what was printed on stdout."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["ddp-workbook", "labs", *arguments])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return code, capsys.readouterr().out

    return run


def test_from_the_stub_to_the_board(workbook, call):
    assert call("reset", LAB.name)[0] == 0
    assert call("check", LAB.name) == (1, f"{LAB.name}: not solved yet\n")
    answer = workbook / "labs" / "answers" / f"{LAB.name}.py"
    answer.write_text(OWN)
    code, said = call("check", LAB.name)
    assert code == 1 and "returned its own tensor" in said
    assert "hint 1 of 3" in call("hint", LAB.name)[1]
    answer.write_text(catalogue.solution(LAB))
    code, said = call("check")
    assert code == 0 and said.startswith(f"{LAB.name}: solved (")
    assert catalogue.solution(LAB).strip() in call("solution", LAB.name)[1]
    assert f"1 of {len(catalogue.LABS)} solved" in call("status")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "nothing"], "there is no lab 'nothing'; choose one of: shift, "),
        (["check", LAB.name], "does not exist; ddp-workbook labs reset shift puts the stub there"),
        (["check"], "there is no answer in"),
        (["check", "."], "holds no submissions"),
        (["hint", "nothing"], "there is no lab 'nothing'"),
        (["solution", LAB.name], "is not solved yet"),
        (["dance"], "Available subcommands: status, check, hint, solution, reset"),
    ],
)
def test_bad_input_is_refused_in_one_line(workbook, refuse, arguments, message):
    code, said = refuse(cli.main, "ddp-workbook", ["labs", *arguments])
    assert code == 2
    assert message in said
    assert len(said.strip().splitlines()) == 1


def test_an_answer_cannot_talk_itself_into_exit_code_0(workbook, call):
    answer = workbook / "labs" / "answers" / f"{LAB.name}.py"
    answer.parent.mkdir(parents=True)
    answer.write_text(f"print('{LAB.name}: solved (')\ndef shift(mine, wire):\n    raise ValueError(': solved (')\n")
    code, said = call("check", LAB.name)
    assert code == 1 and "not right yet" in said


def test_a_judge_that_cannot_run_is_exit_code_1(workbook, call, monkeypatch):
    call("reset", LAB.name)
    (workbook / "labs" / "answers" / f"{LAB.name}.py").write_text(OWN)
    monkeypatch.setattr("ddp_workbook.labs.lab.team.run", refuse_to_run)
    code, said = call("check")
    assert (code, said) == (1, f"{LAB.name}: not judged, and not counted as a try: no port is free\n")


def refuse_to_run(*_):
    raise CannotJudge("no port is free")


def notebook(*cells):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])


@pytest.fixture
def submitted(workbook):
    folder = workbook / "submitted"
    (folder / "anna" / "labs" / "answers").mkdir(parents=True)
    (folder / "anna" / "labs" / "answers" / f"{LAB.name}.py").write_text(catalogue.solution(LAB))
    nbformat.write(notebook("import torch", f"%%lab {LAB.name}\n{catalogue.stub(LAB)}", f"%%lab {LAB.name}\n{OWN}"),
                   folder / "=ben.ipynb")  # fmt: skip
    (folder / "cleo").mkdir()
    (folder / "cleo" / "truncated.ipynb").write_text("{")
    (folder / "cleo" / f"{LAB.name}.py").write_text("import os\nos._exit(1)\n")
    (folder / "readme.txt").touch()
    return folder


def test_a_class_is_judged_to_one_table(submitted, call):
    code, said = call("check", str(submitted), "--output", "table")
    assert code == 1
    assert said.startswith("This runs the students' code on this machine")
    assert "truncated.ipynb cannot be read as a notebook" in said
    with (submitted.parent / "table.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["lab"] == LAB.name]
    found = {row["student"]: (row["state"], row["diagnosis"]) for row in rows}
    assert found == {"'=ben": ("wrong", "own-tensor"), "anna": ("solved", "solved"), "cleo": ("wrong", "died")}
    page = (submitted.parent / "table.html").read_text()
    assert page.count("<tr>") == 4
    assert f"1 of {len(catalogue.LABS)}" in page


def test_files_go_before_notebooks_and_links_are_not_followed(submitted, tmp_path):
    student = submitted / "anna"
    nbformat.write(notebook(f"%%lab {LAB.name}\n{OWN}"), student / "labs" / "01.ipynb")
    secret = tmp_path / "secret.py"
    secret.write_text("secret")
    (student / "ring_all_reduce.py").symlink_to(secret)
    assert submissions.find_answers(student) == {LAB.name: catalogue.solution(LAB)}


def test_text_from_students_is_harmless_in_a_spreadsheet_and_a_page():
    result = submissions.Result("<b>", LAB.name, "wrong", "error", "=1+1", 0.5, 3, 1, "")
    assert "'=1+1" in submissions.to_csv([result])
    others = [
        submissions.Result("<b>", lab.name, "missing", "", "", None, None, None, "") for lab in catalogue.LABS[1:]
    ]
    page = submissions.to_html([result, *others])
    assert "<b>" not in page and "&lt;b&gt;" in page
    assert "3 tries, 1 hints" in page
