"""Invalid invocations: exit code 2, one line, no traceback, earlier results byte-identical.

Every eighth of the table, and random ones; tests/faults runs the whole table.
"""

import string
from dataclasses import fields

import pytest
from helper_bad_invocations import COURSE, TABLE, TRAIN, check_refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import distributed_train
from ddp_workbook import cli
from ddp_workbook.config import CheckpointOptions, TrainConfig
from ddp_workbook.flags import parse_command


@pytest.mark.parametrize("case", TABLE[::8], ids=lambda case: case.name)
def test_an_invalid_invocation(case, refuse, course_folder, monkeypatch):
    check_refused(case, refuse, course_folder, monkeypatch)


def test_the_table_is_long_enough_and_its_names_are_different():
    assert len({case.name for case in TABLE}) == len(TABLE) >= 80


NAMES = [field.name for field in (*fields(TrainConfig), *fields(CheckpointOptions))]
WORDS = st.one_of(
    st.sampled_from(["", "-", "--", "0", "1", "-1", "nan", "inf", "1e999", "None", "True", "x=y", "../..", "auto"]),
    st.integers().map(str),
    st.floats().map(str),
    st.text(string.printable, max_size=12),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)
FLAG = st.sampled_from([*NAMES, "recipe", "help-me", "processes", "bandwidth-gbit", "latency-us"]).map(
    lambda name: "--" + name.replace("_", "-")
)
LINES = st.lists(st.one_of(FLAG, WORDS, st.tuples(FLAG, WORDS).map("=".join)), max_size=6)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arguments=LINES, command=st.sampled_from([None, "run", "bench", "trace", "predict", "report", "doctor", "?"]))
def test_whatever_is_typed_is_done_or_refused_in_one_line(arguments, command, monkeypatch, capsys):
    """The work itself is left out: what is left is reading the command line."""

    def parse_alone(*commands_and_arguments, **options):
        parse_command(*commands_and_arguments, **options)
        return lambda: None

    monkeypatch.setattr(distributed_train, "run", lambda *config_options_world_callbacks: None)
    monkeypatch.setattr(cli, "parse_command", parse_alone)
    main, program = (distributed_train.main, TRAIN) if command is None else (cli.main, COURSE)
    monkeypatch.setattr("sys.argv", [program, *([command] if command else []), *arguments])
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    printed = capsys.readouterr().err
    assert code in (0, 2)
    assert (code == 2) == bool(printed.strip())
    assert not printed or (printed.startswith(f"{program}: error: ") and len(printed.strip().splitlines()) == 1)
