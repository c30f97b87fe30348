"""Resumed runs against uninterrupted ones, bit for bit; and the checkpoints that are not resumed from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_data, run_on_ranks
from helper_interrupted_runs import (
    CPU,
    NO_DRAWS,
    RUNS,
    SERIAL,
    SMALL,
    STOPS,
    compare_resumed,
    in_folder,
    resume_after_first_epoch,
    same,
    seal,
    stop_after_first_epoch,
    stop_early,
    train,
    use_tiny_model_and_check_every_step,
)
from torch import nn

from ddp_workbook import devices
from ddp_workbook.config import CheckpointOptions
from ddp_workbook.distributed.process_group import World
from ddp_workbook.errors import InputError
from ddp_workbook.records.run import load_run
from ddp_workbook.runs.checkpoint import (
    checkpoint_folder,
    model_path,
    read_checkpoint,
    saved_checkpoints,
    write_checkpoint,
)
from ddp_workbook.runs.resume import CheckpointManager
from ddp_workbook.training.loader import TrainLoader
from ddp_workbook.training.state import build_state


@pytest.fixture(autouse=True)
def tiny_model_and_checks_at_every_step(monkeypatch):
    use_tiny_model_and_check_every_step(monkeypatch.setattr)


@pytest.fixture
def stopped(tmp_path):
    return stop_early(tmp_path)


def checkpoints(config, kind="baseline"):
    return saved_checkpoints(checkpoint_folder(config, kind))


@pytest.mark.parametrize("stop_at", [5, 12])
@pytest.mark.parametrize("name", RUNS)
def test_a_serial_run_resumes_exactly(name, stop_at, tmp_path, capsys):
    """Stopped in the middle of an epoch and at its end."""
    complete, interrupted = (in_folder(RUNS[name], tmp_path / kind) for kind in ("complete", "interrupted"))
    data = make_data()
    expected = train(complete, data)
    assert not train(interrupted, data, stop_at=stop_at)
    assert same(expected, train(interrupted, data, resume=True))
    epoch, step = divmod(stop_at, TrainLoader(data, complete, SERIAL, CPU).steps)
    line = f"resuming after step {step} of epoch {epoch + 1}," if step else f"resuming after epoch {epoch},"
    assert line in capsys.readouterr().out
    assert not checkpoint_folder(interrupted, "baseline").exists()


def test_a_distributed_run_resumes_exactly(tmp_path):
    expected = {name: (f"step-{at:06d}", True) for name, at in zip(RUNS, STOPS, strict=True)}
    assert run_on_ranks(compare_resumed, 2, 2, tmp_path) == [expected] * 2


def test_bf16_resumes_exactly(tmp_path):
    if not devices.has_bf16(CPU):
        pytest.skip("this processor has no bf16")
    run = replace(RUNS["dropout, crops, flips, accumulation"], precision="bf16")
    complete, interrupted = in_folder(run, tmp_path / "complete"), in_folder(run, tmp_path / "interrupted")
    expected = train(complete, make_data())
    assert not train(interrupted, make_data(), stop_at=8)
    assert same(expected, train(interrupted, make_data(), resume=True))


def test_fewer_and_more_processes_end_with_the_same_weights(tmp_path):
    """Two processes stop and one resumes; one stops and two resume. Against two, or one, that were never stopped."""
    for before, after in ((2, 1), (1, 2)):
        path = tmp_path / str(before)
        [first, *_] = run_on_ranks(stop_after_first_epoch, before, before, path)
        run_on_ranks(resume_after_first_epoch, after, after, path)
        folders = [path / kind for kind in ("complete", "interrupted")]
        runs = [load_run(folder / "results" / NO_DRAWS.recipe, "distributed") for folder in folders]
        (_, complete), (run, interrupted) = runs
        assert run.world.processes == after
        assert [epoch.model_dump() for epoch in interrupted.epochs[:1]] == first  # not trained again
        for one, other in zip(complete.epochs, interrupted.epochs, strict=True):
            assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        paths = (model_path(in_folder(NO_DRAWS, folder), "distributed") for folder in folders)
        weights, others = (read_checkpoint(one)["model"] for one in paths)
        assert all(torch.allclose(weights[name], others[name], atol=1e-5) for name in weights)


def test_without_a_checkpoint_resume_starts_from_scratch(tmp_path, capsys):
    assert train(in_folder(SMALL, tmp_path), make_data(), resume=True)
    assert "no checkpoint of an interrupted run in" in capsys.readouterr().out


def test_without_resume_a_run_starts_from_scratch_and_says_so(stopped, capsys):
    capsys.readouterr()
    assert not train(stopped, make_data(), stop_at=2)
    assert "holds an interrupted run; starting from scratch" in capsys.readouterr().out
    assert [path.name for path in checkpoints(stopped)] == ["step-000002.pt"]


def test_a_run_that_torchrun_restarts_resumes_by_itself(stopped, capsys):
    again = World(restarts=1)
    assert not train(stopped, make_data(), again, stop_at=2)
    assert "resuming after step 8 of epoch 1" in capsys.readouterr().out
    assert train(replace(stopped, lr=0.2), make_data(), again)  # killed before its own first checkpoint
    assert "belongs to another run: starting from scratch" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["truncated", "one bit", "foreign", "trap", "half a run", "finished model"])
def test_an_unusable_checkpoint_is_named_and_the_previous_one_used(stopped, fault, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the trap would leave its file
    newest, previous = checkpoints(stopped)
    complete, content = newest.read_bytes(), read_checkpoint(newest)
    reason = "is not a checkpoint"
    if fault == "truncated":
        newest.write_bytes(complete[:-1])
        reason = "is truncated, or not a checkpoint of this version"
    elif fault == "one bit":
        newest.write_bytes(complete[:1000] + bytes([complete[1000] ^ 1]) + complete[1001:])
        reason = "is corrupt: its checksum does not match"
    elif fault == "foreign":
        seal(newest, {"model": 1})
    elif fault == "trap":
        seal(newest, {"config": {}, "fingerprint": "", "model": Trap(), "training": None})
    elif fault == "half a run":
        seal(newest, content | {"config": {}, "training": {"epoch": 0, "step": 8}})
    else:
        write_checkpoint(newest, stopped, content["fingerprint"], nn.Linear(3, 2).state_dict())
        reason = "is a finished model, not a run in progress"
    expected = train(in_folder(stopped, tmp_path / "complete"), make_data())
    capsys.readouterr()
    assert same(expected, train(stopped, make_data(), resume=True))
    printed = capsys.readouterr().out
    assert f"{newest} {reason}" in printed
    assert printed.count("; trying the previous checkpoint") == 1
    assert f"resuming after step 4 of epoch 1, from {previous}" in printed
    assert not (tmp_path / "trapped").exists()


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("trapped"),)


REFUSED = {
    "lr": ({"lr": 1.0}, r"--lr 0.1, this one has 1.0"),
    "epochs": ({"epochs": 4}, "--epochs 3, this one has 4"),
    "batch": ({"batch_size": 6}, "--batch-size 4, this one has 6"),
    "seed": ({"seed": 1}, "--seed 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_checkpoint_of_another_run_is_refused(stopped, case):
    changes, message = REFUSED[case]
    before = {path: path.read_bytes() for path in checkpoints(stopped)}
    with pytest.raises(InputError, match=message):
        train(replace(stopped, **changes), make_data(), resume=True)
    assert {path: path.read_bytes() for path in before} == before


def test_other_images_are_refused(stopped):
    other = make_data()
    other.train.images[0] += 1
    with pytest.raises(InputError, match="other images"):
        train(stopped, other, resume=True)


def test_settings_that_do_not_change_the_result_may_differ(stopped):
    assert train(replace(stopped, device="auto", threads=1, data_dir=Path("elsewhere")), make_data(), resume=True)


def resume_on_two(config):
    """The state of rank 0 of two processes after CheckpointManager.resume()."""
    world, data = World(0, 2), make_data()
    state = build_state(config, data, world, CPU)
    CheckpointManager(config, CheckpointOptions(resume=True), world, data).resume(state)
    return state


def test_another_number_of_processes_resumes_only_after_an_epoch(stopped):
    """Two processes with 2 images each take the same steps as one with 4, but each epoch is split differently."""
    half = replace(stopped, batch_size=2)
    with pytest.raises(InputError, match=r"in the middle of an epoch, where only 1 process\(es\) can resume it"):
        resume_on_two(half)
    assert not train(stopped, make_data(), stop_at=12)
    state = resume_on_two(half)
    assert (state.epoch, state.step, len(state.history)) == (1, 12, 1)
    with pytest.raises(InputError, match="global batch of 4, this one's is 6; choose --batch-size"):
        resume_on_two(replace(stopped, batch_size=3))
