"""A wall clock that is wrong, or set forward and back while a run trains: no duration follows from it."""

import time
from dataclasses import replace
from datetime import datetime
from itertools import cycle

from conftest import make_data
from helper_interrupted_runs import SMALL, in_folder, train

from ddp_workbook.records.run import load_run
from ddp_workbook.runs import outputs
from ddp_workbook.runs.outputs import finished_run

DAY = 86_400


class Clock1970(datetime):
    """Of a computer that has no battery for its clock, and no network."""

    @classmethod
    def now(cls, zone=None):
        return cls.fromtimestamp(60, zone)


def test_a_clock_that_jumps_changes_no_duration(tmp_path, monkeypatch):
    real, jumps, began = time.time, cycle((DAY, -DAY, 0)), time.perf_counter()
    config = in_folder(replace(SMALL, epochs=2), tmp_path)
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    assert train(config, make_data(), checkpoint_every=5)
    run, history = load_run(config.run_dir, "baseline")
    seconds = [run.train_seconds, run.evaluation_seconds]
    seconds += [one for epoch in history.epochs for one in (epoch.train_seconds, epoch.evaluation_seconds)]
    assert all(0 < one < time.perf_counter() - began for one in seconds)


def test_a_clock_that_was_set_back_makes_no_run_older(tmp_path, monkeypatch):
    """The run is saved and found again, and it replaces one of a later date."""
    config = in_folder(replace(SMALL, epochs=1), tmp_path)
    assert train(config, make_data())
    monkeypatch.setattr(outputs, "datetime", Clock1970)
    assert train(replace(config, seed=1), make_data())
    run, _ = finished_run(replace(config, seed=1), "baseline", 1, make_data())
    assert run.finished_at == "1970-01-01T00:01:00+00:00"
