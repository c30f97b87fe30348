"""SIGHUP, which a run gets when its terminal is closed: like SIGTERM, unless nohup has it ignored."""

import os
import signal
from dataclasses import replace

import pytest
from conftest import make_data
from helper_interrupted_runs import SERIAL, SMALL, in_folder, train, use_tiny_model_and_check_every_step

from ddp_workbook.distributed.process_group import World
from ddp_workbook.runs.checkpoint import checkpoint_folder, saved_checkpoints
from ddp_workbook.runs.stopping import Stopped, exit_code_for, stop_signals

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGHUP")


@pytest.fixture
def config(tmp_path, monkeypatch):
    use_tiny_model_and_check_every_step(monkeypatch.setattr)
    return in_folder(replace(SMALL, epochs=1), tmp_path)


@pytest.fixture
def ignored():
    """As nohup starts a program, or a shell script one with & at its end."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGINT)}
    yield list(before)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_run_leaves_a_checkpoint_and_resumes(config):
    assert train(config, make_data(), stop_at=5, number=signal.SIGHUP) is None
    assert [path.name for path in saved_checkpoints(checkpoint_folder(config, "baseline"))] == ["step-000005.pt"]
    assert train(config, make_data(), resume=True)


def test_its_exit_code_and_its_line(capsys):
    assert exit_code_for(Stopped(signal.SIGHUP, "step 5"), "script", World()) == 129
    assert capsys.readouterr().err == "stopped by SIGHUP after step 5\n"


def test_a_second_one_waits_too():
    """The system sends one to the programs of a terminal that is closed, and the shell another."""
    with stop_signals(SERIAL) as request:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert request.number == signal.SIGHUP


def test_a_signal_that_is_ignored_stays_ignored(ignored, config):
    for number in ignored:
        assert train(config, make_data(), stop_at=5, number=number)
        assert signal.getsignal(number) is signal.SIG_IGN
