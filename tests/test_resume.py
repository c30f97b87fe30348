"""A run that was interrupted and goes on against one that was not: the same weights and history, bit for bit."""

import signal
from dataclasses import replace

import pytest
import torch
from conftest import make_data, run_on_ranks

import distributed_train
from ddp_workbook import watch
from ddp_workbook.checkpoint import checkpoint_path, load_checkpoint
from ddp_workbook.config import Keeping, TrainConfig
from ddp_workbook.devices import Arithmetic, choose_precision
from ddp_workbook.distributed import World
from ddp_workbook.endings import Stopped
from ddp_workbook.errors import InputError
from ddp_workbook.loader import TrainLoader
from ddp_workbook.record import load_run
from ddp_workbook.results import check_writable, run_kind
from ddp_workbook.resume import Keeper, newest_whole, read_sealed, resume_dir, saved_steps

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
RUNS = {  # 48 images: 12 steps an epoch for the MLP, 6 for the others
    "dropout, Adam, stairs": replace(SMALL, optimizer="adam", lr=1e-3, schedule="step", step_epochs=1),
    "dropout, crops, flips, accumulation": replace(SMALL, model="cnn", augment=True, flip=True, accumulate=2),
    "BatchNorm, crops": replace(SMALL, model="resnet50", dropout=0.0, augment=True, batch_size=8, epochs=2),
}


@pytest.fixture
def ask_after_each_step(monkeypatch):
    monkeypatch.setattr(watch, "SECONDS_BETWEEN", 0)


@pytest.mark.parametrize(
    ("name", "stop_at"), [*((name, at) for name in list(RUNS)[:2] for at in (5, 6, 12)), (list(RUNS)[2], 8)]
)
def test_a_serial_run_goes_on_exactly(name, stop_at, tmp_path, ask_after_each_step, capsys):
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


def both_ways(rank, ranks, name, stop_at, path):
    """Whether a run on these ranks that is stopped by a signal to one of them ends as the other one."""
    watch.SECONDS_BETWEEN = 0
    world = World(rank, ranks, rank, ranks, launched=True)
    plain, broken = in_folder(RUNS[name], path / "plain"), in_folder(RUNS[name], path / "broken")
    data = make_data()
    assert train(plain, data, world)
    assert not train(broken, data, world, stop_at=stop_at if rank == ranks - 1 else 0)
    where = saved_steps(resume_dir(broken, "distributed"))[0].stem
    assert train(broken, data, world, resume=True)
    return where, same(outcome(plain, world), outcome(broken, world))
