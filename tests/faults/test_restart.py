"""A real run under torchrun that loses a rank: what happens to it, and with which weights it ends.

In `make test` notebook 03 does the same, with assertions of its own (tests/course/test_runner.py).
"""

from dataclasses import replace

import pytest
from conftest import ROOT

from ddp_workbook.course.restart_lab import run_logged, same_weights
from ddp_workbook.recipes import RECIPES


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two processes: an undisturbed run, and one whose rank 1 is killed in the second of two epochs."""
    config = replace(RECIPES["mlp-digits"], epochs=2, device="cpu", threads=1)
    folder = tmp_path_factory.mktemp("restart")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return [run_logged(config, 2, folder / str(after), every=5, kill_after=after) for after in (0, 1)]


def test_a_real_run_survives_the_death_of_a_rank(runs):
    """22 steps an epoch: rank 1 dies after step 11 of epoch 2, and the last checkpoint is 30 steps from the start."""
    (quiet, _), (disturbed, _) = runs
    assert list(quiet.events) == []
    assert [epoch for _, epoch in quiet.epochs] == [1, 2]
    assert list(disturbed.events) == [
        "killed", "the other rank notices", "restarted, resuming after step 30",
    ]  # fmt: skip
    assert [epoch for _, epoch in disturbed.epochs] == [1, 2]
    (first, _), (last, _) = disturbed.epochs
    times = [0.0, first, *disturbed.events.values(), last, disturbed.seconds]
    assert times == sorted(times)


def test_a_restarted_run_ends_with_the_weights_of_the_undisturbed_one(runs):
    (_, undisturbed), (_, disturbed) = runs
    assert len(undisturbed) > 4
    assert same_weights(undisturbed, disturbed)
