"""The command line of the course: wrong input is refused in one line, with exit code 2."""

import subprocess
import sys

import pytest
from conftest import ROOT

from ddp_workbook import cli


def test_the_command_itself_ends_with_code_2_and_one_line():
    command = [sys.executable, "-m", "ddp_workbook.cli", "run", "--recipe", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--recipe", "nothing"], "unknown recipe 'nothing'"),
        (["run", "--epochs", "0"], "--epochs must be at least 1"),
        (["dance"], "Available subcommands: run, bench, trace, predict, report, doctor"),
        (["report", "--results-dir", "nowhere"], "does not exist"),
        (["report", "--recipe", "../../etc"], "unknown recipe"),
    ],
)
def test_the_command_line_refuses_in_one_line(refuse, monkeypatch, arguments, message):
    monkeypatch.chdir(ROOT)
    code, said = refuse(cli.main, "ddp-workbook", arguments)
    assert code == 2
    assert message in said
    assert len(said.strip().splitlines()) == 1
