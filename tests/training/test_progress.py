"""What a run shows of its progress: which lines and bars, where, and when."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import Precision
from ddp_workbook.distributed.process_group import World
from ddp_workbook.errors import InputError
from ddp_workbook.records.run import EpochRecord
from ddp_workbook.training import progress
from ddp_workbook.training.metrics import RunningMetrics
from ddp_workbook.training.progress import (
    Bar,
    Lines,
    TensorBoard,
    describe_epoch,
    describe_result,
    describe_run,
    progress_callbacks,
    seconds_left,
)
from ddp_workbook.training.state import PartialEpoch, TrainingState

LAUNCHED = World(0, 2, 0, 2, launched=True)
EPOCH = EpochRecord(
    epoch=3, train_loss=1.23456, train_accuracy=0.456, test_loss=1.0, test_accuracy=0.5, learning_rate=0.0123456,
    train_seconds=12.34, evaluation_seconds=0.56, images_per_second=789.4,
)  # fmt: skip
LINE = "epoch  3/12  loss 1.235  train 45.60%  test 50.00%  lr 0.0123      12.3 s +  0.6 s     789 images/s"


def make_state(epoch=0, step=0, epochs=12, steps_per_epoch=40):
    """A state in the middle of an epoch, whose mean loss is 0.5."""
    metrics = RunningMetrics(step, torch.tensor([0.5 * step, 0.0, float(step)], dtype=torch.float64))
    precision = Precision(torch.device("cpu"), "fp32")
    return TrainingState(None, None, None, precision, epochs, steps_per_epoch, epoch, PartialEpoch(metrics), [EPOCH])


def test_lines_about_an_epoch_a_run_and_a_result():
    assert describe_epoch(EPOCH, 12) == LINE
    config = TrainConfig(batch_size=64, grad_accum_steps=2, base_batch_size=128, threads=1, epochs=12)
    assert describe_run(config, LAUNCHED, make_state()) == (
        "resnet50-cifar10 on cpu: 2 process(es) x 1 thread(s), fp32, global batch 256, peak lr 0.2, "
        "12 epochs of 40 steps"
    )
    result = SimpleNamespace(
        test_accuracy=0.98765, train_seconds=20.04, evaluation_seconds=1.06, images_per_second=80.4
    )
    assert describe_result(result) == (
        "test accuracy 98.77% after 20.0 s of training and 1.1 s of evaluation, 80 images/s"
    )


def test_the_remaining_time_continues_at_the_same_rate():
    assert seconds_left(elapsed=10.0, done=2, total=8) == 30.0


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands at `clock.now`."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock.now)
    return clock


def test_a_line_comes_every_ten_seconds_and_after_each_epoch(clock, capsys):
    lines = Lines()
    for second, step in ((0, 1), (9, 10), (10, 11), (19, 20), (21, 23), (40, 40)):  # (seconds, steps done)
        clock.now = 1000.0 + second
        lines.after_step(make_state(step=step))
    lines.after_epoch(make_state(epoch=1))
    assert capsys.readouterr().out.splitlines() == [
        "epoch  1/12  step 11/40  loss 0.500  29 s left in this epoch",
        "epoch  1/12  step 23/40  loss 0.500  16 s left in this epoch",  # 21 s for 22 steps, 17 steps left
        LINE,
    ]


def test_the_estimate_of_a_resumed_run_counts_its_own_steps_only(clock, capsys):
    """It resumes after step 30, so the first 30 steps took no time here."""
    lines = Lines()
    for second, step in ((0, 31), (12, 35)):
        clock.now = 1000.0 + second
        lines.after_step(make_state(step=step))
    assert capsys.readouterr().out == "epoch  1/12  step 35/40  loss 0.500  15 s left in this epoch\n"


def test_the_estimate_of_an_epoch_does_not_count_the_evaluation_before_it(clock, capsys):
    lines = Lines()
    for epoch, second, step in ((0, 0, 1), (1, 500, 1), (1, 510, 11)):
        clock.now = 1000.0 + second
        lines.after_step(make_state(epoch=epoch, step=step))
    assert capsys.readouterr().out == "epoch  2/12  step 11/40  loss 0.500  29 s left in this epoch\n"


def test_the_bar_counts_the_steps_of_the_run(capsys):
    bar = Bar()
    bar.after_step(make_state(epoch=1, step=5, epochs=2))  # resumed in the second epoch
    assert (bar.bar.n, bar.bar.total) == (45, 80)
    bar.after_epoch(make_state(epoch=1, epochs=2))
    assert not bar.bar.disable
    bar.after_epoch(make_state(epoch=2, epochs=2))
    assert bar.bar.disable  # closed
    assert capsys.readouterr().out.count("epoch  3/2  loss 1.235") == 2


@pytest.mark.parametrize(
    ("terminal", "notebook", "world", "expected"),
    [
        (False, False, World(), [Lines]),
        (True, False, World(), [Bar]),
        (False, True, World(), [Bar]),
        (True, False, LAUNCHED, [Lines]),  # torchrun's ranks write through a pipe, whatever its own output is
        (True, True, replace(LAUNCHED, rank=1, local_rank=1), []),
    ],
)
@pytest.mark.parametrize("tensorboard", [False, True])
def test_who_shows_what(monkeypatch, tmp_path, terminal, notebook, world, expected, tensorboard):
    config = TrainConfig(tensorboard=tensorboard, results_dir=tmp_path)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    if notebook:
        monkeypatch.setitem(sys.modules, "ipykernel", object())
    found = [type(callback) for callback in progress_callbacks(config, world)]
    assert found == [*expected, *([TensorBoard] if tensorboard and world.is_main else [])]
    events = list(tmp_path.glob(f"resnet50-cifar10/tensorboard/{world.kind}/events*"))
    assert len(events) == (tensorboard and world.is_main)


def test_tensorboard_that_is_not_installed_is_an_input_error(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="pip install tensorboard"):
        progress_callbacks(TrainConfig(tensorboard=True, results_dir=tmp_path), World())
