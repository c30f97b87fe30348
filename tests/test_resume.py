"""A run that was interrupted and goes on against one that was not: the same weights and history, bit for bit."""

import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_data, run_on_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import distributed_train
from ddp_workbook import devices, engine, models, watch
from ddp_workbook.checkpoint import checkpoint_path, load_checkpoint
from ddp_workbook.config import Keeping, TrainConfig
from ddp_workbook.devices import Arithmetic, choose_precision
from ddp_workbook.distributed import World
from ddp_workbook.endings import Stopped
from ddp_workbook.errors import InputError
from ddp_workbook.loader import TrainLoader
from ddp_workbook.record import load_run
from ddp_workbook.results import check_writable, run_kind
from ddp_workbook.resume import Keeper, read_sealed, resume_dir, saved_steps, write_sealed

CPU = torch.device("cpu")
ALONE = World()
TIMES = {"train_seconds", "evaluation_seconds", "images_per_second", "communication"}


class StopAt:
    """Sends this process the signal, as a shell would, once the given step of the whole run is done."""

    def __init__(self, step, number=signal.SIGINT):
        self.left, self.number = step, number

    def on_step(self, progress):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(self.number)

    def on_epoch(self, epoch):
        pass


def train(config, data, world=ALONE, stop_at=0, **keeping):
    """The script's own run, from the model to the files. True when it came to its end."""
    check_writable(config)
    amp = Arithmetic(CPU, choose_precision(config.precision, CPU))
    loader = TrainLoader(data, config, world, CPU)
    keeper = Keeper(config, Keeping(**keeping), run_kind(world), world, data)
    try:
        distributed_train.train(config, world, "gloo", amp, data, loader, [StopAt(stop_at)], keeper)
    except Stopped:
        return False
    return True


def outcome(config, world=ALONE):
    """All that two runs must have in common: model, optimizer, random state, history without its times."""
    content, _ = load_checkpoint(checkpoint_path(config, run_kind(world)))
    history = load_run(config.run_dir, run_kind(world))[1].epochs
    traffic = [e.communication and (e.communication.gradient_bytes, e.communication.collectives) for e in history]
    rest = {name: content[name] for name in ("epoch", "model", "optimizer", "schedule", "random_state")}
    return rest | {"history": [e.model_dump(exclude=TIMES) for e in history], "traffic": traffic}


def same(first, second):
    """Bit for bit, whatever it is made of."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[name], second[name]) for name in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def in_folder(config, path):
    return replace(config, results_dir=path / "results", checkpoint_dir=path / "checkpoints")


SMALL = TrainConfig(model="mlp", epochs=3, batch_size=4, lr_batch=4, augment=False, dropout=0.2, precision="fp32")
RUNS = {  # 48 images: 12 steps an epoch for the MLP alone, 6 for the others; half as many on two ranks
    "dropout, Adam, stairs": replace(SMALL, optimizer="adam", lr=1e-3, schedule="step", step_epochs=1),
    "dropout, crops, flips, accumulation": replace(SMALL, model="cnn", augment=True, flip=True, accumulate=2),
    "BatchNorm, crops": replace(SMALL, model="resnet50", dropout=0.0, augment=True, batch_size=8),
}


def build_small(config, classes):
    """In place of a ResNet a net of one convolution, with the BatchNorm that makes ranks differ."""
    if config.model != "resnet50":
        return models.build_model(config, classes)
    layers = [nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, classes)]
    return nn.Sequential(*layers)


@pytest.fixture(autouse=True)
def small_and_attentive(monkeypatch):
    """All ranks ask for signals after each step, so that a run stops at the very step that a test names."""
    monkeypatch.setattr(watch, "SECONDS_BETWEEN", 0)
    monkeypatch.setattr(distributed_train, "build_model", build_small)


@pytest.mark.parametrize("stop_at", [5, 12])
@pytest.mark.parametrize("name", RUNS)
def test_a_serial_run_goes_on_exactly(name, stop_at, tmp_path, capsys):
    """Stopped in the middle of an epoch and at its end."""
    plain, broken = in_folder(RUNS[name], tmp_path / "plain"), in_folder(RUNS[name], tmp_path / "broken")
    data = make_data()
    assert train(plain, data)
    assert not train(broken, data, stop_at=stop_at)
    assert train(broken, data, resume=True)
    assert same(outcome(plain), outcome(broken))
    epoch, step = divmod(stop_at, TrainLoader(data, plain, ALONE, CPU).steps)
    expected = f"going on after step {step} of epoch {epoch + 1}," if step else f"going on after epoch {epoch},"
    assert expected in capsys.readouterr().out
    assert not resume_dir(broken, "baseline").exists()


def both_ways(rank, ranks, path):
    """Of each run on these ranks: where a signal to the last rank stopped it, and whether it then ended the same."""
    watch.SECONDS_BETWEEN, distributed_train.build_model = 0, build_small
    world, data, found = World(rank, ranks, rank, ranks, launched=True), make_data(), {}
    for name, stop_at in zip(RUNS, (4, 3, 2), strict=True):
        plain, broken = (in_folder(RUNS[name], path / name / kind) for kind in ("plain", "broken"))
        assert train(plain, data, world)
        assert not train(broken, data, world, stop_at=stop_at if rank == ranks - 1 else 0)
        where = saved_steps(resume_dir(broken, "distributed"))[0].stem
        assert train(broken, data, world, resume=True)
        found[name] = where, same(outcome(plain, world), outcome(broken, world))
    return found


def test_a_distributed_run_goes_on_exactly(tmp_path):
    expected = {name: (f"step-{at:06d}", True) for name, at in zip(RUNS, (4, 3, 2), strict=True)}
    assert run_on_ranks(both_ways, 2, 2, tmp_path) == [expected] * 2


def test_bf16_goes_on_exactly(tmp_path):
    if not devices.has_bf16(CPU):
        pytest.skip("this processor has no bf16")
    run = replace(RUNS["dropout, crops, flips, accumulation"], precision="bf16")
    plain, broken = in_folder(run, tmp_path / "plain"), in_folder(run, tmp_path / "broken")
    assert train(plain, make_data())
    assert not train(broken, make_data(), stop_at=8)
    assert train(broken, make_data(), resume=True)
    assert same(outcome(plain), outcome(broken))


@pytest.fixture
def stopped(tmp_path):
    """A run that was stopped after step 8 of 12 in its first epoch, with a checkpoint after each fourth step."""
    config = in_folder(SMALL, tmp_path)
    assert not train(config, make_data(), stop_at=8, checkpoint_every=4)
    return config


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


REFUSED = {
    "lr": ({"lr": 1.0}, r"--lr 0.1, this one has 1.0"),
    "epochs": ({"epochs": 4}, "--epochs 3, this one has 4"),
    "batch": ({"batch_size": 6}, "--batch-size 4, this one has 6"),
    "seed": ({"seed": 1}, "--seed 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_runs_checkpoint_is_refused(stopped, case):
    changes, message = REFUSED[case]
    before = {path: path.read_bytes() for path in saved_steps(resume_dir(stopped, "baseline"))}
    with pytest.raises(InputError, match=message):
        train(replace(stopped, **changes), make_data(), resume=True)
    assert {path: path.read_bytes() for path in before} == before


def test_other_images_are_refused(stopped):
    other = make_data()
    other.train.images[0] += 1
    with pytest.raises(InputError, match="other images"):
        train(stopped, other, resume=True)


def test_what_computes_the_same_may_differ(stopped):
    assert train(replace(stopped, device="auto", threads=1, data_dir=Path("elsewhere")), make_data(), resume=True)


def test_another_number_of_processes_goes_on_where_it_can(stopped, capsys):
    """Two processes of 2 images each are as good as one of 4; at the end of an epoch anyone can take over."""
    keeper = Keeper(replace(stopped, batch_size=2), Keeping(), "baseline", World(0, 2), make_data())
    newest, _ = saved_steps(resume_dir(stopped, "baseline"))
    content = read_sealed(newest)
    assert "in the middle of an epoch, where only 1" in keeper._difference(content)
    assert keeper._difference(content | {"step": 0}) is None
    keeper.config = replace(stopped, batch_size=3)
    assert "global batch of 4, this one's is 6; choose --batch-size" in keeper._difference(content | {"step": 0})


def test_nothing_to_go_on_from(tmp_path, capsys):
    assert train(in_folder(SMALL, tmp_path), make_data(), resume=True)
    assert "no checkpoint of an interrupted run in" in capsys.readouterr().out


def test_without_resume_a_run_starts_afresh_and_says_so(stopped, tmp_path, capsys):
    capsys.readouterr()
    assert not train(stopped, make_data(), stop_at=2)
    assert "holds an interrupted run; starting afresh" in capsys.readouterr().out
    assert [path.name for path in saved_steps(resume_dir(stopped, "baseline"))] == ["step-000002.pt"]


def test_a_run_that_torchrun_restarts_goes_on_by_itself(stopped, capsys):
    again = World(restarts=1)
    assert not train(stopped, make_data(), again, stop_at=2)
    assert "going on after step 8 of epoch 1" in capsys.readouterr().out
    assert train(replace(stopped, lr=0.2), make_data(), again)  # killed before its own first checkpoint
    assert "belongs to another run: starting afresh" in capsys.readouterr().out


def test_training_that_diverges_keeps_the_last_good_checkpoint(stopped, monkeypatch):
    kept = saved_steps(resume_dir(stopped, "baseline"))
    real, taken = engine.train_step, []

    def spoiled(model, batches, *rest):
        taken.append(1)
        return real(model, batches, *rest) * (float("nan") if len(taken) == 3 else 1)

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
