"""Runs that a signal stops at a chosen step, and everything that a resumed run must share with an uninterrupted one."""

import hashlib
import io
import signal
from copy import deepcopy
from dataclasses import replace

import torch
from conftest import make_data
from torch import nn
from torch.distributed.tensor import DTensor

import distributed_train
from ddp_workbook.config import CheckpointOptions, TrainConfig
from ddp_workbook.distributed.ddp import unwrap
from ddp_workbook.distributed.process_group import World
from ddp_workbook.records.run import load_run
from ddp_workbook.runs import stopping
from ddp_workbook.runs.checkpoint import SEAL, checkpoint_folder, model_path, read_checkpoint, saved_checkpoints
from ddp_workbook.runs.outputs import RunOutputs
from ddp_workbook.runs.stopping import Stopped, stop_signals
from ddp_workbook.training import models
from ddp_workbook.training import state as training_state
from ddp_workbook.training.loader import TrainLoader

CPU = torch.device("cpu")
SERIAL = World()
TIMES = {"train_seconds", "evaluation_seconds", "images_per_second", "communication"}


class StopAt:
    """Callback that sends this process the signal, as a shell would, after so many of its steps; 0: never."""

    def __init__(self, step, number):
        self.left, self.number = step, number

    def after_step(self, state):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(self.number)

    def after_epoch(self, state):
        pass


class LastState:
    """Callback that copies everything in this rank's training state after the run's last epoch."""

    content = None

    def after_step(self, state):
        pass

    def after_epoch(self, state):
        if state.finished:
            self.content = deepcopy({
                "epoch": state.epoch,
                "step": state.step,
                "model": unwrap(state.model).state_dict(),
                "optimizer": state.optimizer.state_dict(),
                "schedule": state.schedule.state_dict(),
                "scaler": state.precision.scaler.state_dict(),
                "random_state": torch.get_rng_state(),
            })  # fmt: skip


def train(config, data, world=SERIAL, stop_at=0, number=signal.SIGTERM, **options):
    """The script's own run, from the model to the files. Its outcome(), or None when the signal stopped it."""
    loader, last = TrainLoader(data, config, world, CPU), LastState()
    callbacks, outputs = [StopAt(stop_at, number), last], RunOutputs(config, world, "gloo")
    try:
        with stop_signals(world) as request:
            distributed_train.train(
                config, CheckpointOptions(**options), world, outputs, data, loader, callbacks, request
            )
    except Stopped:
        return None
    return outcome(config, world, last.content)


def outcome(config, world, last_state):
    """Everything that two equal runs have in common: this rank's last state, the saved model, the history, the traffic.

    Only times may differ.
    """
    history = load_run(config.run_dir, world.kind)[1].epochs
    traffic = [e.communication and (e.communication.gradient_bytes, e.communication.collectives) for e in history]
    return {
        "last state": last_state,
        "saved model": read_checkpoint(model_path(config, world.kind))["model"],
        "history": [e.model_dump(exclude=TIMES) for e in history],
        "traffic": traffic,
    }


def same(first, second):
    """Equal bit for bit: tensors, and whatever contains them; of sharded ones this rank's parts."""
    if isinstance(first, DTensor):
        first, second = first.to_local(), second.to_local()
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[name], second[name]) for name in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def seal(path, content):
    """Write any content as a file with a valid seal; write_checkpoint() writes only what belongs in one."""
    payload = io.BytesIO()
    torch.save(content, payload)
    path.write_bytes(payload.getvalue() + SEAL + hashlib.sha256(payload.getvalue()).digest())


def in_folder(config, path):
    return replace(config, results_dir=path / "results", checkpoint_dir=path / "checkpoints")


SMALL = TrainConfig(
    model="mlp", epochs=3, batch_size=4, base_batch_size=4, augment=False, dropout=0.2, precision="fp32"
)  # fmt: skip
RUNS = {  # 48 images: 12 steps an epoch for the MLP on one process, 6 for the others; half as many on two ranks
    "dropout, Adam, step decay": replace(SMALL, optimizer="adam", lr=1e-3, schedule="step", step_epochs=1),
    "dropout, crops, flips, accumulation": replace(SMALL, model="cnn", augment=True, flip=True, grad_accum_steps=2),
    "BatchNorm, crops": replace(SMALL, model="resnet50", dropout=0.0, augment=True, batch_size=8),
    "LSTM, AdamW": replace(SMALL, model="lstm", dropout=0.0, optimizer="adamw", batch_size=8),
}
STOPS = (4, 3, 2, 2)  # steps after which the runs on two ranks are stopped, in the same order


def build_tiny(config, classes):
    """Instead of a ResNet a network of one convolution, with the BatchNorm that makes ranks differ."""
    if config.model != "resnet50":
        return models.build_model(config, classes)
    layers = [nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, classes)]
    return nn.Sequential(*layers)


def use_tiny_model_and_check_every_step(set_attribute=setattr):
    """All ranks check for signals after each step, so that a run stops at exactly the step that a test names."""
    set_attribute(stopping, "SECONDS_BETWEEN_CHECKS", 0)
    set_attribute(training_state, "build_model", build_tiny)


def stop_early(path):
    """The configuration of a run that was stopped after step 8 of 12 in its first epoch, with checkpoints 4 and 8."""
    config = in_folder(SMALL, path)
    assert not train(config, make_data(), stop_at=8, checkpoint_every=4)
    return config


NO_DRAWS = replace(SMALL, dropout=0.0)  # nothing that each rank draws or normalizes on its own


def stop_after_first_epoch(rank, ranks, path):
    """On these ranks a complete run, and one that is stopped after its first epoch: that one's saved history."""
    use_tiny_model_and_check_every_step()
    world = World(rank, ranks, rank, ranks, launched=True)
    complete, interrupted = (
        in_folder(replace(NO_DRAWS, batch_size=4 // ranks), path / kind) for kind in ("complete", "interrupted")
    )
    assert train(complete, make_data(), world)
    assert not train(interrupted, make_data(), world, stop_at=12)
    newest, *_ = saved_checkpoints(checkpoint_folder(interrupted, "distributed"))
    return read_checkpoint(newest)["training"]["history"]


def resume_after_first_epoch(rank, ranks, path):
    """Resume that run on another number of ranks."""
    world = World(rank, ranks, rank, ranks, launched=True)
    config = in_folder(replace(NO_DRAWS, batch_size=4 // ranks), path / "interrupted")
    assert train(config, make_data(), world, resume=True)


def compare_resumed(rank, ranks, path):
    """For each of RUNS: where a signal to the last rank stopped it, and whether it ended like an uninterrupted one."""
    use_tiny_model_and_check_every_step()
    world, data, found = World(rank, ranks, rank, ranks, launched=True), make_data(), {}
    for name, stop_at in zip(RUNS, STOPS, strict=True):
        complete, interrupted = (in_folder(RUNS[name], path / name / kind) for kind in ("complete", "interrupted"))
        expected = train(complete, data, world)
        assert not train(interrupted, data, world, stop_at=stop_at if rank == ranks - 1 else 0)
        where = saved_checkpoints(checkpoint_folder(interrupted, "distributed"))[0].stem
        found[name] = where, same(expected, train(interrupted, data, world, resume=True))
    return found
