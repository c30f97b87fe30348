"""Runs that end early: stop signals, losses that are not finite, and the exit code for each error."""

import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, make_data
from helper_interrupted_runs import (
    CPU,
    SERIAL,
    SMALL,
    StopAt,
    in_folder,
    stop_early,
    train,
    use_tiny_model_and_check_every_step,
)

from ddp_workbook.distributed.process_group import LostConnection, World
from ddp_workbook.errors import InputError
from ddp_workbook.records.run import load_run
from ddp_workbook.runs import stopping
from ddp_workbook.runs.checkpoint import checkpoint_folder, saved_checkpoints
from ddp_workbook.runs.resume import newest_complete
from ddp_workbook.runs.stopping import Stopped, StopRequest, TrainingMonitor, exit_code_for, stop_signals
from ddp_workbook.training import loop
from ddp_workbook.training.loader import TrainLoader
from ddp_workbook.training.loop import fit
from ddp_workbook.training.state import build_state

RUN = ["distributed_train.py", "--recipe", "mlp-digits", "--device", "cpu", "--epochs", "1000"]


def test_ctrl_c_under_torchrun_leaves_a_checkpoint_and_no_process(tmp_path):
    """The ranks have groups of their own, which end with them: a group without a process cannot be found."""
    places = ["--results-dir", str(tmp_path), "--checkpoint-dir", str(tmp_path)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run = subprocess.Popen(
        [*launcher, *RUN, *places], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    lines = []
    for line in run.stdout:
        lines.append(line)
        if "epoch  2/" in line:
            break
    run.send_signal(signal.SIGINT)
    lines += list(run.stdout)  # which ends when the last process that could write has ended
    assert run.wait(60) == 1
    assert sum("stopped by SIGINT after" in line and "--resume" in line for line in lines) == 1, lines
    assert newest_complete(tmp_path / "distributed_mlp_digits", print)


def test_a_signal_waits_for_the_end_of_a_step():
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals(World(launched=True)) as request:
        assert request.number == 0
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert request.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_ctrl_c_does_not_wait():
    with pytest.raises(KeyboardInterrupt), stop_signals(World()):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def fit_with_monitor(config, stop_at=0):
    """Train with a monitor that only notes where it would save; returns these steps and the finished state."""
    data, saved = make_data(), []
    state, loader = build_state(config, data, SERIAL, CPU), TrainLoader(data, config, SERIAL, CPU)
    with stop_signals(SERIAL) as request:
        monitor = TrainingMonitor(request, before_stop=lambda state: saved.append(state.step))
        try:
            fit(state, loader, data, config, SERIAL, [StopAt(stop_at, signal.SIGTERM), monitor])
        except Stopped as stopped:
            saved.append(str(stopped))
    return saved, state


@pytest.mark.parametrize(
    ("step", "place"),
    [
        (5, "step 5 of 12 in epoch 1"),
        (12, "epoch 1"),
        (13, "step 1 of 12 in epoch 2"),
        (23, "step 11 of 12 in epoch 2"),
    ],
)
def test_a_stopped_run_saves_once_and_says_where(step, place, monkeypatch):
    monkeypatch.setattr(stopping, "SECONDS_BETWEEN_CHECKS", 0)
    saved, _ = fit_with_monitor(replace(SMALL, epochs=2), step)
    assert saved == [step, f"stopped by SIGTERM after {place}; to resume: the same command with --resume"]


def test_a_signal_in_the_last_step_lets_the_run_finish(monkeypatch):
    monkeypatch.setattr(stopping, "SECONDS_BETWEEN_CHECKS", 0)
    saved, state = fit_with_monitor(replace(SMALL, epochs=2), 24)
    assert (saved, state.finished) == ([], True)


def steps_of_checks(monkeypatch, seconds, steps, steps_per_epoch=1000):
    """After which steps of so many seconds each the monitor checks."""
    now, checks = [0.0], []
    monkeypatch.setattr(stopping, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    metrics = SimpleNamespace(first_bad=None, compute=lambda: checks.append(step))
    partial = SimpleNamespace(metrics=metrics)
    monitor = TrainingMonitor(StopRequest(), before_stop=print)
    for step in range(1, steps + 1):
        now[0] += seconds
        at_epoch_end = step % steps_per_epoch == 0
        monitor.after_step(SimpleNamespace(partial=partial, at_epoch_end=at_epoch_end, device=CPU, epoch=0))
    return checks


def test_the_monitor_checks_about_once_a_second(monkeypatch):
    """The steps between two checks double until they take a second."""
    assert steps_of_checks(monkeypatch, 0.1, 36) == [1, 3, 7, 15, 25, 35]
    assert steps_of_checks(monkeypatch, 2.0, 5) == [1, 2, 3, 4, 5]


def test_the_monitor_always_checks_the_last_step_of_an_epoch(monkeypatch):
    assert steps_of_checks(monkeypatch, 0.001, 30, steps_per_epoch=10) == [1, 3, 7, 10, 20, 30]


@pytest.mark.parametrize("bad", [1, 4, 12])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_and_its_step_is_named(bad, value, monkeypatch):
    """Also when the monitor checks only later."""
    spoil_loss(monkeypatch, bad, value)
    monkeypatch.setattr(stopping, "SECONDS_BETWEEN_CHECKS", 1e9)
    with pytest.raises(InputError, match=rf"training diverged: the loss is not finite at step {bad} of epoch 1; usual"):
        fit_with_monitor(SMALL)


def spoil_loss(monkeypatch, bad, value):
    """From now on the loss of training step `bad`, counted from 1, has this value."""
    real, calls = loop.train_step, []

    def train_step(*arguments):
        calls.append(1)
        factor = value if len(calls) == bad else 1
        return [one._replace(loss=one.loss * factor) for one in real(*arguments)]

    monkeypatch.setattr(loop, "train_step", train_step)


def test_training_that_diverges_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    use_tiny_model_and_check_every_step(monkeypatch.setattr)
    stopped = stop_early(tmp_path)
    kept = saved_checkpoints(checkpoint_folder(stopped, "baseline"))
    spoil_loss(monkeypatch, 3, float("nan"))
    with pytest.raises(InputError, match=r"the loss is not finite at step 11 of epoch 1; usual causes: --lr too large"):
        train(stopped, make_data(), resume=True)
    assert saved_checkpoints(checkpoint_folder(stopped, "baseline")) == kept


def test_a_run_that_is_never_stopped_has_no_checkpoint(tmp_path):
    config = in_folder(replace(SMALL, epochs=1), tmp_path)
    assert train(config, make_data())
    assert len(load_run(config.run_dir, "baseline")[1].epochs) == 1
    assert not checkpoint_folder(config, "baseline").exists()


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("a\nb"), 2, "script: error: a b\n"),
        (Stopped(signal.SIGINT, "epoch 3"), 130, "stopped by SIGINT after epoch 3\n"),
        (Stopped(signal.SIGTERM, "epoch 3"), 143, "stopped by SIGTERM after epoch 3\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_how_each_end_is_reported(error, code, line, capsys, monkeypatch):
    assert exit_code_for(error, "script", World()) == code
    assert capsys.readouterr().err == line
    waits = []
    monkeypatch.setattr(stopping.time, "sleep", waits.append)
    assert exit_code_for(error, "script", World(rank=3, local_rank=1)) == code
    assert capsys.readouterr().err == (line if code == 2 else "")
    assert waits == ([stopping.SECONDS_FOR_FIRST_RANK] if code == 2 else [])
    assert exit_code_for(error, "script", World(rank=2)) == code  # the first rank of another machine does not wait
    assert capsys.readouterr().err == (line if code == 2 else "")
    assert len(waits) == (code == 2)


def test_memory_that_torch_does_not_get_is_one_line(capsys):
    """An exbibyte, which no machine has."""
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**58)
    assert exit_code_for(refused.value, "script", World(rank=2)) == 2
    assert capsys.readouterr().err.startswith(
        "script: error: out of memory on rank 2, when it asked for 1152921504606846976"
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of ..."),
        RuntimeError("MPS backend out of memory (MPS allocated: ...). Tried to allocate 20.00 MiB on private pool."),
        RuntimeError("could not create a memory object"),
        MemoryError(),
    ],
)
def test_so_is_memory_that_others_do_not_get(error, capsys):
    assert exit_code_for(error, "script", World()) == 2
    more = ", when it asked for 20.00 MiB more" if "20.00" in str(error) else ""
    advice = "use a smaller --batch-size with more --grad-accum-steps, or more processes with --shard full"
    assert capsys.readouterr().err == f"script: error: out of memory on rank 0{more}; {advice}\n"


def test_other_errors_keep_their_traceback(capsys):
    assert exit_code_for(LostConnection("rank 1 of 2 lost connection"), "script", World(rank=1)) == 1
    assert capsys.readouterr().err == "script: rank 1 of 2 lost connection\n"
    with pytest.raises(RuntimeError, match="size mismatch"):
        exit_code_for(RuntimeError("size mismatch"), "script", World())
