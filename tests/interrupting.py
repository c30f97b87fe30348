"""Runs that a signal stops at a chosen step, and what two runs must have in common."""

import signal
from dataclasses import replace

import torch
from conftest import make_data
from ddp_workbook.checkpoint import checkpoint_path, load_checkpoint
from ddp_workbook.endings import Stopped
from ddp_workbook.loader import TrainLoader
from ddp_workbook.record import load_run
from ddp_workbook.results import check_writable, run_kind
from ddp_workbook.resume import Keeper, read_sealed, resume_dir, saved_steps
from torch import nn

import distributed_train
from ddp_workbook import models, watch
from ddp_workbook.config import Keeping, TrainConfig
from ddp_workbook.devices import Arithmetic, choose_precision
from ddp_workbook.distributed import World

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


def be_small_and_attentive(monkeypatch):
    """All ranks ask for signals after each step, so that a run stops at the very step that a test names."""
    monkeypatch.setattr(watch, "SECONDS_BETWEEN", 0)
    monkeypatch.setattr(distributed_train, "build_model", build_small)


def stop_early(path):
    """A run that was stopped after step 8 of 12 in its first epoch, with a checkpoint after each fourth step."""
    config = in_folder(SMALL, path)
    assert not train(config, make_data(), stop_at=8, checkpoint_every=4)
    return config


SHARED = replace(SMALL, dropout=0.0)  # nothing that is drawn or normalised by each rank for itself


def stop_on_these(rank, ranks, path):
    """A whole run on these ranks, and one that is stopped at the end of its first epoch."""
    watch.SECONDS_BETWEEN = 0
    world = World(rank, ranks, rank, ranks, launched=True)
    plain, broken = (in_folder(replace(SHARED, batch_size=4 // ranks), path / kind) for kind in ("plain", "broken"))
    assert train(plain, make_data(), world)
    assert not train(broken, make_data(), world, stop_at=12)
    return read_sealed(saved_steps(resume_dir(broken, "distributed"))[0])["history"]


def go_on_with_these(rank, ranks, path):
    """That run goes on, on as many ranks as there are now."""
    world = World(rank, ranks, rank, ranks, launched=True)
    assert train(in_folder(replace(SHARED, batch_size=4 // ranks), path / "broken"), make_data(), world, resume=True)


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
