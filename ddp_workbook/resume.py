"""Checkpoints of a run under way: written whole and with a checksum, so that an interrupted run goes on exactly."""

from __future__ import annotations

import hashlib
import io
import pickle
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import BinaryIO

import torch
from pydantic import TypeAdapter, ValidationError

from ddp_workbook.checkpoint import PartialEpoch, TrainingState, checkpoint_path, save_hashed
from ddp_workbook.config import Keeping, TrainConfig
from ddp_workbook.datasets import Dataset
from ddp_workbook.distributed import World, communication_since, from_main, gather_objects, unwrap
from ddp_workbook.errors import InputError, diverged
from ddp_workbook.files import write_whole
from ddp_workbook.record import Communication, EpochRecord, RunKind
from ddp_workbook.tally import Tally

SEAL = b"ddp-workbook run under way, 1\n"  # ends the file, together with the SHA-256 of all that comes before
SEAL_BYTES = len(SEAL) + hashlib.sha256().digest_size
KEPT = 2
SECONDS_BETWEEN = 60  # at the ends of epochs, where --checkpoint-every does not ask for more
NEUTRAL = {"data_dir", "results_dir", "checkpoint_dir", "device", "backend", "threads", "tensorboard"}
FIELDS = {
    "config", "processes", "precision", "fingerprint", "epoch", "step", "seconds", "communication", "history",
    "model", "optimizer", "schedule", "scaler", "ranks",
}  # fmt: skip
_CONFIG = TypeAdapter(TrainConfig)


def resume_dir(config: TrainConfig, kind: RunKind) -> Path:
    """checkpoints/<baseline|distributed>_<model>_<dataset>/, beside the final model."""
    return checkpoint_path(config, kind).with_suffix("")


def write_sealed(path: Path, content: dict) -> None:
    """Write the content with its checksum, whole or not at all."""

    def write(file: BinaryIO) -> None:
        digest = save_hashed(content, file)
        file.write(SEAL + digest)

    write_whole(path, write)


def read_sealed(path: Path) -> dict:
    """The content. Raises InputError for a file that is torn, altered or foreign; nothing in it is run."""
    try:
        raw = memoryview(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror or error})") from error
    payload = raw[:-SEAL_BYTES]
    if raw[-SEAL_BYTES:] != SEAL + hashlib.sha256(payload).digest():
        raise InputError(f"{path} is torn or altered (its checksum does not fit)")
    try:
        content = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is not a checkpoint ({str(error).splitlines()[0][:80]})") from error
    if not isinstance(content, dict) or set(content) != FIELDS:
        raise InputError(f"{path} is not a checkpoint of a run of this workbook")
    try:
        content["config"] = _CONFIG.validate_python(content["config"])
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(f"{path} does not fit: config.{where}: {error.errors()[0]['msg']}") from None
    return content


def saved_steps(folder: Path) -> list[Path]:
    """The checkpoints in the folder, newest first."""
    found = [path for path in folder.glob("step-*.pt") if path.stem.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda path: int(path.stem.removeprefix("step-")), reverse=True)


def newest_whole(folder: Path, say: Callable[[str], None]) -> tuple[Path, dict] | None:
    """The newest checkpoint that is whole; each one that is not is named."""
    for path in saved_steps(folder):
        try:
            return path, read_sealed(path)
        except InputError as error:
            say(f"{error}; looking for the one before")
    return None


class Keeper:
    """The checkpoints of one run: writes them, goes on from them, and clears them away when the run has finished.

    Its methods are for all ranks together. Rank 0 alone touches files, and it alone speaks.
    """

    def __init__(self, config: TrainConfig, keeping: Keeping, kind: RunKind, world: World, data: Dataset) -> None:
        self.config, self.keeping, self.world, self.data = config, keeping, world, data
        self.folder = resume_dir(config, kind)
        self.kept: list[Path] = []
        self.written = time.perf_counter()

    def is_due(self, step: int) -> bool:
        """Whether --checkpoint-every asks for one after this step of the whole run."""
        return self.keeping.checkpoint_every > 0 and step % self.keeping.checkpoint_every == 0

    def is_due_after_epoch(self) -> bool:
        """Whether one is due at the end of an epoch. Each rank has its own clock: one that says so is enough."""
        return self.keeping.checkpoint_every > 0 or time.perf_counter() - self.written >= SECONDS_BETWEEN

    def save(self, state: TrainingState, step: int) -> None:
        """Write the run as it stands after `step` steps. Raises InputError on every rank when that fails."""
        ranks = gather_objects(_own_part(state))
        from_main(lambda: self._write(self.folder / f"step-{step:06d}.pt", state, ranks))
        self.written = time.perf_counter()

    def _write(self, path: Path, state: TrainingState, ranks: list[dict]) -> None:
        model, partial = unwrap(state.model), state.partial
        if not all(bool(weight.isfinite().all()) for weight in model.parameters()):
            raise diverged(f"weights are no longer numbers after step {partial.step} of epoch {state.epoch + 1}")
        content = {
            "config": _CONFIG.dump_python(self.config, mode="json"),
            "processes": self.world.size,
            "precision": state.amp.precision,
            "fingerprint": self.data.info().fingerprint,
            "epoch": state.epoch,
            "step": partial.step,
            "seconds": partial.clock.seconds if partial.step else 0.0,
            "communication": partial.communication and partial.communication.model_dump(),
            "history": [epoch.model_dump() for epoch in state.history],
            "model": model.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "schedule": state.schedule.state_dict(),
            "scaler": state.amp.scaler.state_dict(),
            "ranks": ranks,
        }
        write_sealed(path, content)
        self.kept = [*(other for other in self.kept if other != path), path][-KEPT:]
        self._remove_all_but(self.kept)

    def _remove_all_but(self, kept: list[Path]) -> None:
        """Older checkpoints, those of an earlier run, and what a killed process left half written."""
        for path in [*self.folder.glob("step-*.pt"), *self.folder.glob(".step-*")]:
            if path not in kept:
                path.unlink(missing_ok=True)

    def finished(self) -> None:
        """The final model is written: the checkpoints have done their work."""
        if self.world.is_main and self.folder.exists():
            self._remove_all_but([])
            with suppress(OSError):  # not empty: somebody else's files
                self.folder.rmdir()

    def resume(self, state: TrainingState) -> None:
        """Put the newest whole checkpoint into the state, if the run was asked to go on or torchrun restarted it.

        Raises InputError, on every rank, when the checkpoint belongs to a run with other settings.
        """
        found = from_main(self._find)
        if found:
            path, content = found
            settle_buckets(state, self.config)
            try:
                restore(state, content, self.config, self.world)
            except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
                raise InputError(f"{path} does not fit this run ({str(error).splitlines()[0][:80]})") from error

    def _find(self) -> tuple[Path, dict] | None:
        """What to go on from, with a line on it."""
        asked, restarted = self.keeping.resume, self.world.restarts > 0
        if not (asked or restarted):
            if saved_steps(self.folder):
                _say(f"{self.folder} holds an interrupted run; starting afresh (--resume would try to go on with it)")
            return None
        found = newest_whole(self.folder, _say)
        if found is None:
            _say(f"no checkpoint of an interrupted run in {self.folder}: starting afresh")
            return None
        path, content = found
        difference = self._difference(content)
        if difference and not asked:  # an older run's: this one was restarted before its own first checkpoint
            _say(f"{path} belongs to another run: starting afresh")
            return None
        if difference:
            raise InputError(
                f"{path} {difference}; to start afresh leave out --resume (in notebook 02: RETRAIN = True)"
            )
        saved = saved_steps(self.folder)
        self.kept = saved[saved.index(path) :][::-1]
        epoch, step = content["epoch"], content["step"]
        _say(f"going on after {f'step {step} of epoch {epoch + 1}' if step else f'epoch {epoch}'}, from {path}")
        if self.config.gradient_compression == "powersgd":
            _say("powersgd's memory of what it left out is not in it: weights will not be those of an unbroken run")
        return found

    def _difference(self, content: dict) -> str | None:
        """How the checkpoint's run differs from this one; None when this one can go on with it."""
        theirs, ours, processes = content["config"], self.config, content["processes"]
        same_size = processes == self.world.size
        free = NEUTRAL if same_size else NEUTRAL | {"batch_size", "accumulate"}
        for field in fields(TrainConfig):
            first, second = getattr(theirs, field.name), getattr(ours, field.name)
            if field.name not in free and first != second:
                return f"belongs to a run with --{field.name.replace('_', '-')} {first}, this one has {second}"
        if content["fingerprint"] != self.data.info().fingerprint:
            return f"belongs to a run on other images than those now in {ours.data_dir}"
        before, now = theirs.global_batch(processes), ours.global_batch(self.world.size)
        if before != now:
            return (
                f"belongs to a run of {processes} process(es) with a global batch of {before}, this one's is {now}; "
                f"choose --batch-size so that it is the same"
            )
        if not same_size and content["step"]:
            return f"was written in the middle of an epoch, where only {processes} process(es) can go on with it"
        return None


def settle_buckets(state: TrainingState, config: TrainConfig) -> None:
    """One backward pass for nothing, before the state is restored.

    DDP sorts its buckets anew after its first backward pass, by the order in which the gradients came. Three ranks and
    more add up their values in an order that depends on a value's place in its bucket, and sums are rounded: a run that
    goes on must not begin with unsorted buckets.
    """
    if unwrap(state.model) is not state.model:
        images = torch.zeros(2, config.channels, config.image_size, config.image_size, device=state.amp.device)
        state.model.train()
        with state.amp.autocast():
            loss = state.model(images.to(memory_format=torch.channels_last)).sum()
        loss.backward()
        state.optimizer.zero_grad(set_to_none=True)
        communication_since(state.model)  # forget its traffic


def restore(state: TrainingState, content: dict, config: TrainConfig, world: World) -> None:
    """Make the state what it was when the checkpoint was written, this rank's own part included."""
    if content["precision"] != state.amp.precision:
        raise ValueError(f"its precision is {content['precision']}, this one's {state.amp.precision}")
    unwrap(state.model).load_state_dict(content["model"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.schedule.load_state_dict(content["schedule"])
    state.amp.scaler.load_state_dict(content["scaler"])
    state.epoch = content["epoch"]
    state.history = [EpochRecord.model_validate(epoch) for epoch in content["history"]]
    if content["processes"] == world.size:
        _take_own_part(state, content, content["ranks"][world.rank])
    else:  # the ranks that drew these numbers are not there; nothing else is drawn from torch's random state
        torch.manual_seed(config.seed + 1_009 * state.epoch + world.rank)


def _own_part(state: TrainingState) -> dict:
    """What each rank has for itself: its tally, its BatchNorm statistics, the state of its random draws."""
    device = state.amp.device
    return {
        "tally": state.partial.tally.count(),
        "buffers": [buffer.cpu() for buffer in unwrap(state.model).buffers()],
        "draws": torch.get_rng_state(),
        "accelerator_draws": None if device.type == "cpu" else _accelerator(device).get_rng_state(),
    }


def _take_own_part(state: TrainingState, content: dict, own: dict) -> None:
    device: torch.device = state.amp.device
    traffic = content["communication"] and Communication.model_validate(content["communication"])
    state.partial = PartialEpoch(Tally(content["step"], own["tally"]), content["seconds"], traffic)
    for buffer, saved in zip(unwrap(state.model).buffers(), own["buffers"], strict=True):
        buffer.copy_(saved)
    torch.set_rng_state(own["draws"])
    if own["accelerator_draws"] is not None and device.type != "cpu":
        _accelerator(device).set_rng_state(own["accelerator_draws"])


def _accelerator(device: torch.device) -> object:
    """torch.cuda or torch.mps, each with a random state of its own."""
    return torch.get_device_module(device)


def _say(line: str) -> None:
    print(line, flush=True)
