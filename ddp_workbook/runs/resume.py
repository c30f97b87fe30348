"""CheckpointManager: writes the checkpoints of a run in progress, resumes from them, and removes them at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from ddp_workbook.config import (
    PATHS,
    PLACEMENT,
    SHARDING,
    SPLIT,
    CheckpointOptions,
    TrainConfig,
    first_difference,
    flag,
)
from ddp_workbook.devices import synchronize
from ddp_workbook.distributed.collectives import dist_max, from_main, gather_objects
from ddp_workbook.distributed.ddp import MeteredDDP, add_communication, take_communication, unwrap
from ddp_workbook.distributed.process_group import World
from ddp_workbook.distributed.sharding import (
    load_whole_optimizer,
    load_whole_weights,
    whole_optimizer,
    whole_weights,
)
from ddp_workbook.errors import InputError, diverged
from ddp_workbook.records.run import Communication, EpochRecord
from ddp_workbook.runs.checkpoint import checkpoint_folder, read_checkpoint, saved_checkpoints, write_checkpoint
from ddp_workbook.training.datasets import Dataset
from ddp_workbook.training.loader import stream
from ddp_workbook.training.metrics import RunningMetrics
from ddp_workbook.training.state import PartialEpoch, TrainingState

KEPT = 2
SECONDS_BETWEEN = 60  # at the ends of epochs, where --checkpoint-every does not ask for more


class CheckpointManager:
    """Callback for the checkpoints of one run. All ranks call its methods together; only rank 0 reads and writes."""

    def __init__(self, config: TrainConfig, options: CheckpointOptions, world: World, data: Dataset) -> None:
        self.config, self.options, self.world, self.data = config, options, world, data
        self.folder = checkpoint_folder(config, world.kind)
        self.kept: list[Path] = []
        self.written = time.perf_counter()

    def after_step(self, state: TrainingState) -> None:
        """Save if --checkpoint-every asks for it; the end of an epoch has its own checkpoint."""
        every = self.options.checkpoint_every
        if every and state.step % every == 0 and not state.at_epoch_end:
            self.save(state)

    def after_epoch(self, state: TrainingState) -> None:
        """Save, unless the run is finished or the last checkpoint is less than a minute old."""
        if state.finished:
            return
        [age] = dist_max([time.perf_counter() - self.written], state.device)  # NEW: each rank has its own clock
        if self.options.checkpoint_every or age >= SECONDS_BETWEEN:
            self.save(state)

    def save(self, state: TrainingState) -> None:
        """Write the run as it is now, outside of the epoch's time. Raises InputError on every rank when that fails."""
        partial = state.partial
        with partial.clock.paused():
            synchronize(state.device)
            if partial.step:
                partial.communication = add_communication(partial.communication, take_communication(state.model))
            ranks = gather_objects(_state_of_rank(state))
            weights, optimizer = whole_weights(unwrap(state.model)), whole_optimizer(state.optimizer, self.config)
            from_main(lambda: self._write(state, ranks, weights, optimizer))
        self.written = time.perf_counter()

    def _write(self, state: TrainingState, ranks: list[dict], weights: dict[str, Tensor], optimizer: dict) -> None:
        partial = state.partial
        finite = all(bool(weights[name].isfinite().all()) for name, _ in unwrap(state.model).named_parameters())
        if not finite or not all(math.isfinite(rank["metrics"][0]) for rank in ranks):
            raise diverged(f"weights or loss are not finite after step {partial.step} of epoch {state.epoch + 1}")
        training = {
            "processes": self.world.size,
            "precision": state.precision.name,
            "epoch": state.epoch,
            "step": partial.step,
            "seconds": partial.clock.seconds if partial.step else 0.0,
            "communication": partial.communication and partial.communication.model_dump(),
            "history": [epoch.model_dump() for epoch in state.history],
            "optimizer": optimizer,
            "schedule": state.schedule.state_dict(),
            "scaler": state.precision.scaler.state_dict(),
            "batch_sizes": state.batch_sizes,
            "ranks": ranks,
        }
        path = self.folder / f"step-{state.step:06d}.pt"
        write_checkpoint(path, self.config, self.data.fingerprint, weights, training)
        self.kept = [*(other for other in self.kept if other != path), path][-KEPT:]
        self._remove_all_but(self.kept)

    def _remove_all_but(self, kept: list[Path]) -> None:
        """Older checkpoints, those of an earlier run, and temporary files of a killed process."""
        for path in [*self.folder.glob("step-*.pt"), *self.folder.glob(".step-*")]:
            if path not in kept:
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove all checkpoints: the finished model is written."""
        if self.world.is_main and self.folder.exists():
            self._remove_all_but([])
            with suppress(OSError):  # not empty: files of somebody else
                self.folder.rmdir()

    def resume(self, state: TrainingState) -> None:
        """Restore the newest complete checkpoint, if --resume asks for it or torchrun has restarted the run.

        Raises InputError, on every rank, when the checkpoint belongs to a run with other settings.
        """
        newest = from_main(self._find)
        if newest:
            path, content = newest
            rebuild_buckets(state, self.config)
            try:
                restore(state, content, self.config, self.world)
            except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
                raise InputError(f"{path} does not fit this run ({str(error).splitlines()[0][:80]})") from error

    def _find(self) -> tuple[Path, dict] | None:
        """The checkpoint to resume from; prints a line about it."""
        asked, restarted = self.options.resume, self.world.restarts > 0
        if not (asked or restarted):
            if saved_checkpoints(self.folder):
                _print(
                    f"{self.folder} holds an interrupted run; starting from scratch (--resume would try to resume it)"
                )
            return None
        newest = newest_complete(self.folder, _print)
        if newest is None:
            _print(f"no checkpoint of an interrupted run in {self.folder}: starting from scratch")
            return None
        path, content = newest
        difference = self._difference(content)
        if difference and not asked:  # an older run's: this one was restarted before its own first checkpoint
            _print(f"{path} belongs to another run: starting from scratch")
            return None
        if difference:
            raise InputError(
                f"{path} {difference}; to start from scratch leave out --resume (in a notebook: RETRAIN = True; "
                f"ddp-workbook run: --retrain)"
            )
        saved = saved_checkpoints(self.folder)
        self.kept = saved[saved.index(path) :][::-1]
        epoch, step = content["training"]["epoch"], content["training"]["step"]
        _print(f"resuming after {f'step {step} of epoch {epoch + 1}' if step else f'epoch {epoch}'}, from {path}")
        if self.config.comm_hook == "powersgd":
            _print("PowerSGD's error feedback is not checkpointed, so the resumed run will not be bit-identical")
        return newest

    def _difference(self, content: dict) -> str | None:
        """How the checkpoint's run differs from this one; None when this one can resume it."""
        theirs, ours, processes = content["config"], self.config, content["training"]["processes"]
        same_size = processes == self.world.size
        name = first_difference(theirs, ours, PATHS | PLACEMENT | SHARDING | (frozenset() if same_size else SPLIT))
        if name:
            return f"belongs to a run with {flag(name)} {getattr(theirs, name)}, this one has {getattr(ours, name)}"
        if content["fingerprint"] != self.data.fingerprint:
            return f"belongs to a run on other images than those now in {ours.data_dir}"
        before, now = theirs.global_batch(processes), ours.global_batch(self.world.size)
        if before != now:
            return (
                f"belongs to a run of {processes} process(es) with a global batch of {before}, this one's is {now}; "
                f"choose --batch-size so that it is the same"
            )
        if not same_size and content["training"]["step"]:
            return f"was written in the middle of an epoch, where only {processes} process(es) can resume it"
        return None


def newest_complete(folder: Path, report: Callable[[str], None]) -> tuple[Path, dict] | None:
    """The newest checkpoint that is complete; each corrupt one is reported."""
    for path in saved_checkpoints(folder):
        try:
            content = read_checkpoint(path)
            if content["training"]:
                return path, content
            report(f"{path} is a finished model, not a run in progress; trying the previous checkpoint")
        except InputError as error:
            report(f"{str(error).removesuffix('; run the training again')}; trying the previous checkpoint")
    return None


def rebuild_buckets(state: TrainingState, config: TrainConfig) -> None:
    """A dummy backward pass that makes DDP rebuild its buckets before the state is restored.

    After its first backward pass DDP sorts its buckets by the order in which the gradients came. With three ranks or
    more, the order in which values are added up depends on their place in a bucket, and sums are rounded: a resumed run
    must not begin with unsorted buckets.
    """
    if isinstance(state.model, MeteredDDP):
        images = torch.zeros(2, config.channels, config.image_size, config.image_size, device=state.device)
        state.model.train()
        with state.precision.autocast():
            loss = state.model(images.to(memory_format=torch.channels_last)).sum()
        loss.backward()
        state.optimizer.zero_grad(set_to_none=True)
        take_communication(state.model)  # and forget it


def restore(state: TrainingState, content: dict, config: TrainConfig, world: World) -> None:
    """Set the state, including this rank's own part, to what it was when the checkpoint was written."""
    training = content["training"]
    if training["precision"] != state.precision.name:
        raise ValueError(f"its precision is {training['precision']}, this one's {state.precision.name}")
    load_whole_weights(unwrap(state.model), content["model"])
    load_whole_optimizer(state.optimizer, training["optimizer"], config)
    state.schedule.load_state_dict(training["schedule"])
    state.precision.scaler.load_state_dict(training["scaler"])
    state.epoch = training["epoch"]
    state.history = [EpochRecord.model_validate(epoch) for epoch in training["history"]]
    if training["processes"] == world.size:
        state.batch_sizes = training["batch_sizes"]  # with --balance auto: as they were measured then
        _restore_rank(state, training, training["ranks"][world.rank])
    else:  # the ranks that drew these random numbers do not exist; nothing else is drawn from torch's random state
        torch.manual_seed(stream(config.seed, 1_009 * state.epoch + world.rank))


def _state_of_rank(state: TrainingState) -> dict:
    """What differs between ranks: running metrics, BatchNorm statistics, the random state."""
    device = state.device
    return {
        "metrics": state.partial.metrics.compute(),
        "buffers": [buffer.cpu() for buffer in unwrap(state.model).buffers()],
        "random_state": torch.get_rng_state(),
        "accelerator_random_state": None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(),
    }


def _restore_rank(state: TrainingState, training: dict, rank: dict) -> None:
    communication = training["communication"] and Communication.model_validate(training["communication"])
    metrics = RunningMetrics(training["step"], rank["metrics"])
    state.partial = PartialEpoch(metrics, training["seconds"], communication)
    for buffer, saved in zip(unwrap(state.model).buffers(), rank["buffers"], strict=True):
        buffer.copy_(saved)
    torch.set_rng_state(rank["random_state"])
    if rank["accelerator_random_state"] is not None and state.device.type != "cpu":
        torch.get_device_module(state.device).set_rng_state(rank["accelerator_random_state"])


def _print(line: str) -> None:
    print(line, flush=True)
