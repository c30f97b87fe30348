"""Many readers' answers judged at once, for a teacher: from a folder of submissions to one table."""

from __future__ import annotations

import csv
import html
import io
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import nbformat

from ddp_workbook.analysis.lab_progress import row
from ddp_workbook.errors import InputError
from ddp_workbook.labs import catalogue
from ddp_workbook.labs.desk import check_length
from ddp_workbook.labs.lab import Lab, judge
from ddp_workbook.labs.verdict import CannotJudge
from ddp_workbook.records.files import load_record, save_text
from ddp_workbook.records.labs import LabsRecord

NOTICE = """This runs the students' code on this machine, with your rights. Time, memory and output of each answer are
limited; files and the network are not. labs/TEACHERS.md says how to do it in a container."""
STATES = {"solved": "#c7e9c0", "wrong": "#fdd0a2", "missing": "#ffffff", "not judged": "#d9d9d9"}


@dataclass(frozen=True)
class Result:
    """One student's answer to one lab."""

    student: str
    lab: str
    state: str
    """One of STATES."""
    diagnosis: str
    message: str
    seconds: float | None
    tries: int | None
    """As the student's own labs.json says; None: there is none."""
    hints: int | None
    lent: str
    """Earlier labs whose reference solution stood in."""


def check(folder: Path, output: Path) -> bool:
    """Judge every submission in the folder, and write <output>.csv and <output>.html. True if all are right.

    A submission is a folder with answer files <lab>.py or notebooks anywhere in it, or one notebook. The student's
    name is that of the folder or notebook. Raises InputError when there is none.
    """
    submissions = sorted(path for path in folder.iterdir() if path.is_dir() or path.suffix == ".ipynb")
    submissions = [path for path in submissions if not path.name.startswith(".") and not path.is_symlink()]
    if not submissions:
        raise InputError(f"{folder} holds no submissions: folders with answers, or notebooks, one for each student")
    print(NOTICE, flush=True)
    results: list[Result] = []
    for path in submissions:
        results += _judge_all(path.stem if path.is_file() else path.name, find_answers(path), _record(path))
    save_text(to_csv(results), output.with_name(f"{output.name}.csv"))
    save_text(to_html(results), output.with_name(f"{output.name}.html"))
    print(f"{output}.csv and {output}.html: {len(submissions)} submissions, {len(catalogue.LABS)} labs")
    return all(each.state == "solved" for each in results)


def find_answers(submission: Path) -> dict[str, str]:
    """Source by lab. Answer files go before notebooks, and in a notebook the last cell of a lab counts."""
    paths = [submission] if submission.is_file() else sorted(submission.rglob("*"))
    paths = [
        path for path in paths if path.is_file() and not path.is_symlink() and ".ipynb_checkpoints" not in path.parts
    ]
    found: dict[str, str] = {}
    for path in paths:
        if path.suffix == ".ipynb":
            found |= _cells(path)
    names = {f"{lab.name}.py": lab.name for lab in catalogue.LABS}
    for path in paths:
        if path.name in names:
            found[names[path.name]] = path.read_text(encoding="utf-8", errors="replace")
    return found


def _cells(path: Path) -> dict[str, str]:
    """The answers in a notebook's %%lab cells; a file that is no notebook has none."""
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat passes on what its parsers raise
        print(f"{path} cannot be read as a notebook ({type(error).__name__})", flush=True)
        return {}
    found = {}
    for cell in notebook.cells:
        first, _, source = cell.source.partition("\n")
        words = first.split()
        if cell.cell_type == "code" and len(words) == 2 and words[0] == "%%lab":
            found[words[1]] = source
    return found


def _record(submission: Path) -> LabsRecord:
    """What the student's own record says, if there is one that fits."""
    for path in sorted(submission.rglob("labs.json")) if submission.is_dir() else ():
        try:
            return load_record(LabsRecord, path)
        except InputError as error:
            print(error, flush=True)
    return LabsRecord()


def _judge_all(student: str, answers: dict[str, str], record: LabsRecord) -> list[Result]:
    results, right = [], {}
    for lab in catalogue.LABS:
        history = record.labs.get(lab.name)
        board = row(lab.name, history) if history else None
        known = (board.tries, board.hints) if board else (None, None)
        state, diagnosis, message, seconds, lent = _judge(lab, answers.get(lab.name), right)
        if state == "solved":
            right[lab.name] = answers[lab.name]
        results.append(Result(student, lab.name, state, diagnosis, message, seconds, *known, ", ".join(lent)))
        if state != "missing":
            print(f"{student}: {lab.name}: {state}{'' if state == 'solved' else f': {message}'}", flush=True)
    return results


def _judge(lab: Lab, source: str | None, right: dict[str, str]) -> tuple[str, str, str, float | None, list[str]]:
    """State, diagnosis, message, seconds, lent. Earlier answers are the student's own where they are right."""
    if source is None or source.split() == catalogue.stub(lab).split():
        return "missing", "", "", None, []
    earlier = [catalogue.answer(catalogue.find(name), right.get(name)) for name in lab.uses]
    lent = [each.name for each in earlier if each.lent]
    try:
        check_length(source)
        verdict = judge(lab, catalogue.answer(lab, source, earlier))
    except (CannotJudge, InputError) as error:
        return "not judged", "", str(error), None, lent
    state = "solved" if verdict.solved else "wrong"
    return state, verdict.diagnosis, verdict.message, round(verdict.seconds, 2), lent


def to_csv(results: list[Result]) -> str:
    """One line for each student and lab."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(Result)])
    writer.writerows([_harmless(value) for value in astuple(each)] for each in results)
    return text.getvalue()


def _harmless(value: object) -> object:
    """A text that a spreadsheet would take for a formula, marked as text: it may come from a student's code."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def to_html(results: list[Result]) -> str:
    """A page with one row for each student and one column for each lab."""
    students = list(dict.fromkeys(each.student for each in results))
    cells = {(each.student, each.lab): each for each in results}
    head = "".join(f"<th>{lab.number} {lab.name}</th>" for lab in catalogue.LABS)
    body = ""
    for student in students:
        row = [cells[student, lab.name] for lab in catalogue.LABS]
        solved = sum(each.state == "solved" for each in row)
        body += f"<tr><th>{html.escape(student)}</th><td>{solved} of {len(row)}</td>{''.join(map(_cell, row))}</tr>\n"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Labs</title><style>
body {{ font: 14px sans-serif; }} table {{ border-collapse: collapse; }}
th, td {{ border: 1px solid #999; padding: 3px 6px; text-align: left; vertical-align: top; }}
</style></head><body><h1>Labs</h1>
<table><tr><th>submission</th><th>solved</th>{head}</tr>
{body}</table></body></html>
"""


def _cell(each: Result) -> str:
    words = each.state if each.state != "wrong" else each.diagnosis
    own = f"<br>{each.tries} tries, {each.hints} hints" if each.tries is not None else ""
    place = f'style="background: {STATES[each.state]}" title="{html.escape(each.message)}"'
    return f"<td {place}>{html.escape(words)}{own}</td>"
