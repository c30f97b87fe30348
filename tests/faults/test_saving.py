"""A run that is killed, or cannot write, at any moment of its saving: the earlier run is complete, or the new one."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_data
from helper_interrupted_runs import CPU, SERIAL, SMALL, in_folder, use_tiny_model_and_check_every_step

from ddp_workbook import devices
from ddp_workbook.errors import InputError
from ddp_workbook.records import files
from ddp_workbook.records.run import load_run, model_path
from ddp_workbook.runs.checkpoint import read_checkpoint
from ddp_workbook.runs.outputs import RunOutputs, finished_run
from ddp_workbook.training.loader import TrainLoader
from ddp_workbook.training.loop import fit
from ddp_workbook.training.state import build_state

WRITING = [(files.tempfile, "NamedTemporaryFile"), (files.os, "fsync"), (Path, "chmod"), (Path, "replace")]


@pytest.fixture(scope="module")
def ended():
    """Two runs, earlier and new, of one epoch and other seeds: configuration and what RunOutputs.save() gets."""
    data, found = make_data(), []
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_model_and_check_every_step(patch.setattr)
        for seed in (1, 2):
            config = replace(SMALL, model="resnet50", dropout=0.0, epochs=1, seed=seed)
            state, loader = build_state(config, data, SERIAL, CPU), TrainLoader(data, config, SERIAL, CPU)
            found.append((config, (state, fit(state, loader, data, config, SERIAL), data)))
    return found


def save(config, arguments):
    outputs = RunOutputs(config, SERIAL, "gloo")
    with outputs.locked():
        return outputs.save(*arguments)


def complete_run(configs, ended):
    """Which of the runs is on disk, 0 or 1: exactly one of them, with its own record, history and weights."""
    found = [number for number, config in enumerate(configs) if finished_run(config, "baseline", 1, ended[0][1][2])]
    assert len(found) == 1
    run, history = load_run(configs[0].run_dir, "baseline")
    state = ended[found[0]][1][0]
    assert run.config.seed == configs[found[0]].seed
    assert history.epochs == state.history
    weights = read_checkpoint(model_path(run.config, "baseline"))["model"]
    assert all(torch.equal(value, weights[name]) for name, value in state.model.state_dict().items())
    return found[0]


def interrupt(set_attribute, at, do):
    """Call do() in place of the operation on disk with this number, counted from 1; returns the list that counts."""
    done = []

    def counted(real):
        def operation(*arguments, **options):
            done.append(1)
            return do() if len(done) == at else real(*arguments, **options)

        return operation

    for owner, name in WRITING:
        set_attribute(owner, name, counted(getattr(owner, name)))
    return done


def disk_is_full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def configs(ended, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "_git_commit", lambda: None)  # two more processes each time
    return [in_folder(config, tmp_path) for config, _ in ended]


def names(folder):
    """Its files, but for lock files, which stay."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


FILES = ["baseline_history.json", "baseline_metrics.json", "baseline_resnet50_cifar10.pth"]


def test_a_disk_that_is_full_at_any_moment(ended, configs, tmp_path):
    (_, first), (_, second) = ended
    at, outcomes = 0, []
    while True:
        at += 1
        save(configs[0], first)
        with pytest.MonkeyPatch.context() as patch:
            outputs = RunOutputs(configs[1], SERIAL, "gloo")
            with outputs.locked():
                done = interrupt(patch.setattr, at, disk_is_full)
                try:
                    outputs.save(*second)
                except InputError as error:
                    assert "No space left" in str(error)
                else:
                    break
        outcomes.append(complete_run(configs, ended))
        assert names(tmp_path) == FILES
    assert len(done) == at - 1 >= 12
    assert outcomes == sorted(outcomes)  # from some moment on it is the new run
    assert set(outcomes) == {0, 1}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_moment(ended, configs, tmp_path):
    (_, first), (_, second) = ended
    at, outcomes, code = 0, [], 9
    while code:
        at += 1
        save(configs[0], first)
        if not (child := os.fork()):
            outputs = RunOutputs(configs[1], SERIAL, "gloo")
            with outputs.locked():
                interrupt(setattr, at, lambda: os._exit(9))
                outputs.save(*second)
                os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        outcomes.append(complete_run(configs, ended))
        with RunOutputs(configs[1], SERIAL, "gloo").locked():
            pass  # the next run cleans up
        assert names(tmp_path) == FILES
        assert complete_run(configs, ended) == outcomes[-1]
    assert at >= 12
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {0, 1}
