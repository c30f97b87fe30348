"""Checkpoints of a run under way: whole, recognised when harmed, and never of a run that has diverged."""

import time
from pathlib import Path

import pytest
import torch
from conftest import make_data
from ddp_workbook.checkpoint import checkpoint_path
from ddp_workbook.record import load_run
from ddp_workbook.resume import Keeper, read_sealed, resume_dir, saved_steps, write_sealed
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupting import (
    ALONE,
    be_small_and_attentive,
    in_folder,
    outcome,
    same,
    stop_early,
    train,
)

from ddp_workbook import engine
from ddp_workbook.config import Keeping
from ddp_workbook.errors import InputError


@pytest.fixture(autouse=True)
def small_and_attentive(monkeypatch):
    be_small_and_attentive(monkeypatch)


@pytest.fixture
def stopped(tmp_path):
    return stop_early(tmp_path)


def test_the_last_two_are_kept_until_the_run_has_finished(stopped):
    folder = resume_dir(stopped, "baseline")
    (folder / ".step-000004.pt.half").write_bytes(b"left by a killed process")
    assert [path.name for path in saved_steps(folder)] == ["step-000008.pt", "step-000004.pt"]
    assert not train(stopped, make_data(), stop_at=3, checkpoint_every=4, resume=True)  # after steps 11 and 12
    assert sorted(path.name for path in folder.iterdir()) == ["step-000008.pt", "step-000011.pt"]
    assert train(stopped, make_data(), resume=True)
    assert not folder.exists()
    assert checkpoint_path(stopped, "baseline").exists()


@pytest.mark.parametrize("harm", ["cut", "flip", "foreign", "trap"])
def test_a_harmed_checkpoint_is_named_and_the_one_before_it_used(stopped, harm, capsys, tmp_path):
    newest, before = saved_steps(resume_dir(stopped, "baseline"))
    whole = newest.read_bytes()
    if harm == "cut":
        newest.write_bytes(whole[:-1])
    elif harm == "flip":
        newest.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    else:  # sealed rightly, and yet not ours
        write_sealed(newest, {"model": Trap()} if harm == "trap" else {"model": 1})
    plain = in_folder(stopped, tmp_path / "plain")
    assert train(plain, make_data())
    capsys.readouterr()
    assert train(stopped, make_data(), resume=True)
    said = capsys.readouterr().out
    assert f"{newest} is " in said
    assert "looking for the one before" in said
    assert f"going on after step 4 of epoch 1, from {before}" in said
    assert same(outcome(plain), outcome(stopped))
    assert not (tmp_path / "trapped").exists()


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("trapped"),)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_no_harmed_file_is_read(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "step-000001.pt"
    write_sealed(path, {"a": torch.ones(100)})
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    cut, flipped = whole[:place], bytearray(whole)
    flipped[place] ^= data.draw(st.integers(1, 255))
    for harmed in (cut, bytes(flipped), whole + b"\0"):
        path.write_bytes(harmed)
        with pytest.raises(InputError, match="torn or altered"):
            read_sealed(path)


def test_training_that_diverges_keeps_the_last_good_checkpoint(stopped, monkeypatch):
    kept = saved_steps(resume_dir(stopped, "baseline"))
    real, taken = engine.train_step, []

    def spoiled(model, batches, *rest):
        taken.append(1)
        factor = float("nan") if len(taken) == 3 else 1
        return [one._replace(loss=one.loss * factor) for one in real(model, batches, *rest)]

    monkeypatch.setattr(engine, "train_step", spoiled)
    with pytest.raises(InputError, match=r"no longer a number at step 11 of epoch 1; usual causes: too large a --lr"):
        train(stopped, make_data(), resume=True)
    assert saved_steps(resume_dir(stopped, "baseline")) == kept


def spoil(model):
    next(model.parameters()).data.fill_(float("inf"))


def test_weights_that_are_no_numbers_are_not_kept(stopped, monkeypatch):
    """Made so by a step whose own loss was one."""
    kept = saved_steps(resume_dir(stopped, "baseline"))
    real = Keeper.save
    monkeypatch.setattr(Keeper, "save", lambda keeper, state, step: (spoil(state.model), real(keeper, state, step)))
    with pytest.raises(InputError, match="weights are no longer numbers after step 9 of epoch 1"):
        train(stopped, make_data(), resume=True, checkpoint_every=9)
    monkeypatch.setattr(engine, "average_buffers", spoil)
    with pytest.raises(InputError, match="the test loss is no longer a number after epoch 1"):
        train(stopped, make_data(), resume=True)
    assert saved_steps(resume_dir(stopped, "baseline")) == kept


def test_a_full_disk_leaves_the_earlier_checkpoint(stopped, monkeypatch):
    """A file may grow to so many bytes and no more: the error of a full disk, without one."""
    kept = {path: path.read_bytes() for path in saved_steps(resume_dir(stopped, "baseline"))}
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write .*step-000012.pt \(File too large\)"):
            train(stopped, make_data(), resume=True, checkpoint_every=1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {path: path.read_bytes() for path in resume_dir(stopped, "baseline").iterdir()} == kept


def test_pauses_are_not_training(stopped, monkeypatch):
    real = Keeper.save

    def slow(*arguments):
        time.sleep(0.2)
        real(*arguments)

    monkeypatch.setattr(Keeper, "save", slow)
    assert train(stopped, make_data(), checkpoint_every=4)
    run, _ = load_run(stopped.run_dir, "baseline")
    assert run.train_seconds < 8 * 0.2


def test_checkpoints_at_the_ends_of_epochs_wait_for_a_minute(stopped, monkeypatch):
    keeper = Keeper(stopped, Keeping(), "baseline", ALONE, make_data())
    assert not keeper.is_due_after_epoch()
    keeper.written -= 60
    assert keeper.is_due_after_epoch()
