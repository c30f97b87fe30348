"""Records and report.toml from elsewhere are data: bounded, checked, unable to break out; and a full disk."""

import errno
import json
import os
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import typst
from conftest import ROOT
from helper_bad_invocations import finish_course
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pypdf import PdfReader

from ddp_workbook.analysis import plots
from ddp_workbook.errors import InputError
from ddp_workbook.records import files
from ddp_workbook.records.files import load_record
from ddp_workbook.records.run import RunRecord, load_run
from ddp_workbook.report.build import build_report
from ddp_workbook.report.members import load_team

posix = pytest.mark.skipif(os.name != "posix", reason="links, pipes and odd names as POSIX has them")


# Records


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The records of a finished course."""
    path = tmp_path_factory.mktemp("made")
    finish_course(path)
    return path


def changed(path, *place_and_value):
    *place, value = place_and_value
    record = json.loads(path.read_text())
    inner = record
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    return json.dumps(record)


CARELESS = {
    "brackets without end": lambda path: "[" * 10_000_000,
    "objects without end": lambda path: '{"a":' * 1_000_000,
    "a number of 100,000 digits": lambda path: changed(path, "parameters", 0).replace(
        '"parameters": 0', '"parameters": 1' + "0" * 100_000
    ),
    "a count beyond any machine": lambda path: changed(path, "parameters", 10**30),
    "an endless time": lambda path: changed(path, "train_seconds", 1e300),
    "not a number": lambda path: changed(path, "test_loss", float("nan")),
    "a day that is none": lambda path: changed(path, "finished_at", "the day after tomorrow"),
    "the year 1": lambda path: changed(path, "finished_at", "0001-01-01T00:00:00"),
    "a name of a megabyte": lambda path: changed(path, "environment", "cpu", "x" * 2**20),
    "an escape sequence": lambda path: changed(path, "environment", "cpu", "\x1b]0;title\x07"),
    "half a character": lambda path: changed(path, "dataset", "classes", ["\ud800", "b"]),
    "a hundred thousand classes": lambda path: changed(path, "dataset", "classes", ["x"] * 100_000),
    "no classes": lambda path: changed(path, "dataset", "classes", []),
    "another encoding": lambda path: changed(path, "recipe", "ä").encode().decode().encode("utf-16").decode("latin-1"),
}


@pytest.mark.parametrize("case", CARELESS)
def test_a_record_that_would_break_a_careless_reader_is_refused(made, tmp_path, case):
    path = tmp_path / "baseline_metrics.json"
    path.write_text(CARELESS[case](made / "baseline_metrics.json"), encoding="utf-8")
    with pytest.raises(InputError) as refusal:
        load_record(RunRecord, path)
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value)) < 1000


def test_a_record_of_a_gigabyte_is_not_read(tmp_path):
    path = tmp_path / "baseline_metrics.json"
    with path.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(InputError, match="larger than any record"):
        load_run(tmp_path, "baseline")


@posix
def test_a_pipe_or_a_device_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "baseline_metrics.json")
    with pytest.raises(InputError, match="it is not a file"):
        load_run(tmp_path, "baseline")
    with pytest.raises(InputError, match="it is not a file"):
        load_record(RunRecord, Path("/dev/zero"))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_anywhere_in_the_records_makes_a_report_or_one_line(made, monkeypatch, data):
    """typst itself is left out here: it takes seconds, and gets nothing but text."""
    monkeypatch.setattr(typst, "compile", lambda *args, **options: b"%PDF")
    monkeypatch.setattr(plots, "to_svg", lambda figure: plt.close(figure) or b"")
    name = data.draw(st.sampled_from(sorted(path.name for path in made.glob("*.json"))))
    before = (made / name).read_text()
    record = inner = json.loads(before)
    while True:
        place = data.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
        if not (isinstance(inner[place], dict | list) and inner[place] and data.draw(st.booleans())):
            break
        inner = inner[place]
    odd = st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=8), st.just(0), st.just(1e18), st.just([]))
    inner[place] = data.draw(odd)
    try:
        (made / name).write_text(json.dumps(record))
        build_report(made, ROOT / "report.toml")
    except InputError as error:
        assert len(str(error).splitlines()) == 1 or "does not fit" in str(error)
    finally:
        (made / name).write_text(before)
        plt.close("all")


# report.toml


def team(**changes):
    fields = {"title": "T", "course": "C", "institution": "I", "repository": "R"} | changes
    lines = [f"{name} = {value if name in changes else json.dumps(value)}" for name, value in fields.items()]
    return "\n".join([*lines, "[[members]]", 'name = "N"', 'contribution = "C"'])


TOMLS = {
    "brackets without end": (team(title="[" * 40_000), "not valid TOML"),
    "a number of 5,000 digits": (team(title="1" * 5_000), "not valid TOML|valid string"),
    "an unknown key": (team(font='"x"'), "does not fit: font"),
    "an unknown key of 50,000 letters": (team(**{"k" * 50_000: '"x"'}), "does not fit: kkk"),
    "a title of 50,000 letters": (team(title=json.dumps("x" * 50_000)), "does not fit: title"),
    "an empty title": (team(title='"  "'), "does not fit: title"),
    "a NUL": (team(title='"a\\u0000b"'), "control characters"),
    "an escape sequence": (team(title='"\\u001b[31m"'), "control characters"),
    "51 members": (team() + '\n[[members]]\nname = "N"\ncontribution = "C"' * 50, "does not fit: members"),
    "a date": (team(title="1979-05-27"), "does not fit: title"),
    "not a number": (team(title="nan"), "does not fit: title"),
    "no text at all": ("\x00\x01", "not valid TOML"),
}


@pytest.mark.parametrize("case", TOMLS)
def test_a_report_toml_that_would_break_a_careless_reader(tmp_path, case):
    (tmp_path / "report.toml").write_text(TOMLS[case][0])
    with pytest.raises(InputError, match=TOMLS[case][1]) as refusal:
        load_team(tmp_path / "report.toml")
    assert len(str(refusal.value)) < 1000


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "report.toml").write_bytes(b'title = "\xff\xfe"')
    with pytest.raises(InputError, match="not valid TOML"):
        load_team(tmp_path / "report.toml")


@posix
def test_a_pipe_in_place_of_report_toml(tmp_path):
    os.mkfifo(tmp_path / "report.toml")
    with pytest.raises(InputError, match="is not a file"):
        load_team(tmp_path / "report.toml")


def test_several_lines_become_one_paragraph(tmp_path):
    (tmp_path / "report.toml").write_text(team(title='"""Two\nlines"""'))
    assert load_team(tmp_path / "report.toml").title == "Two lines"


def test_nothing_leaves_the_typesetting(made, tmp_path):
    """Code, paths and references that typst would act on stand in the PDF as they were written."""
    hostile = '#read("/etc/passwd") #include "x.typ" #sys.inputs @fig <l> $ \\ ` // "; ]]} '
    toml = team(**{name: json.dumps(hostile) for name in ("title", "course", "institution", "repository")})
    (tmp_path / "report.toml").write_text(toml)
    text = "".join(page.extract_text() for page in PdfReader(build_report(made, tmp_path / "report.toml")).pages)
    assert text.count("#read(") >= 4
    assert "root:" not in text


# A full disk


def full(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_earlier_figure_and_report(made, tmp_path, monkeypatch):
    picture = tmp_path / "figure.png"
    figure = plots.schedule([0.1, 0.2], 1)
    plots.save_png(figure, picture)
    report = build_report(made, ROOT / "report.toml")
    earlier = picture.read_bytes(), report.read_bytes()
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write .*figure.png \(No space left"):
        plots.save_png(figure, picture)
    with pytest.raises(InputError, match=r"cannot write .*report.pdf \(No space left"):
        build_report(made, ROOT / "report.toml")
    plt.close(figure)
    assert (picture.read_bytes(), report.read_bytes()) == earlier
    assert not list(made.glob(".*"))
