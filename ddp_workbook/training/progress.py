"""Progress of a run: a bar in a terminal or notebook, plain lines through a pipe, TensorBoard event files."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import choose_threads
from ddp_workbook.distributed.process_group import World
from ddp_workbook.errors import InputError
from ddp_workbook.records.files import require_writable
from ddp_workbook.records.run import EpochRecord, RunKind, RunRecord
from ddp_workbook.training.loop import Callback
from ddp_workbook.training.state import TrainingState

SECONDS_BETWEEN_LINES = 10


def describe_epoch(epoch: EpochRecord, epochs: int) -> str:
    """One line about a finished epoch."""
    return (
        f"epoch {epoch.epoch:>2}/{epochs}  loss {epoch.train_loss:.3f}  train {epoch.train_accuracy:6.2%}  "
        f"test {epoch.test_accuracy:6.2%}  lr {epoch.learning_rate:<8.3g}  {epoch.train_seconds:6.1f} s + "
        f"{epoch.evaluation_seconds:4.1f} s  {epoch.images_per_second:6.0f} images/s"
    )


def describe_run(config: TrainConfig, world: World, state: TrainingState) -> str:
    """One line about a run that begins."""
    threads = choose_threads(config.threads, world.local_size)
    sharded = "" if config.shard == "none" else f", shard {config.shard}"
    return (
        f"{config.recipe} on {state.device.type}: {world.size} process(es) x {threads} thread(s), "
        f"{state.precision.name}{sharded}, global batch {config.global_batch(world.size)}, "
        f"peak lr {config.peak_lr(world.size):g}, "
        f"{config.epochs} epochs of {state.steps_per_epoch} steps"
    )


def describe_result(run: RunRecord) -> str:
    """One line about a finished run."""
    return (
        f"test accuracy {run.test_accuracy:.2%} after {run.train_seconds:.1f} s of training and "
        f"{run.evaluation_seconds:.1f} s of evaluation, {run.images_per_second:.0f} images/s"
    )


def seconds_left(elapsed: float, done: float, total: float) -> float:
    """Remaining time, if it goes on at the same rate."""
    return elapsed * (total - done) / done


class Lines:
    """A line per epoch, and one every ten seconds in between."""

    def __init__(self) -> None:
        self.last = self.epoch_start = time.perf_counter()
        self.epoch = self.first_step = -1

    def after_step(self, state: TrainingState) -> None:
        now, step = time.perf_counter(), state.partial.step
        if state.epoch != self.epoch:  # a resumed run may begin in the middle of an epoch
            self.epoch, self.first_step = state.epoch, step
            self.epoch_start = self.last = now
        elif now - self.last >= SECONDS_BETWEEN_LINES and not state.at_epoch_end:
            self.last = now
            done, total = step - self.first_step, state.steps_per_epoch - self.first_step
            print(
                f"epoch {state.epoch + 1:>2}/{state.epochs}  step {step}/{state.steps_per_epoch}  "
                f"loss {state.partial.metrics.mean_loss():.3f}  "
                f"{seconds_left(now - self.epoch_start, done, total):.0f} s left in this epoch",
                flush=True,
            )

    def after_epoch(self, state: TrainingState) -> None:
        print(describe_epoch(state.history[-1], state.epochs), flush=True)


class Bar:
    """One bar for the whole run, and a line per epoch above it."""

    bar: tqdm | None = None

    def after_step(self, state: TrainingState) -> None:
        if self.bar is None:  # here, because stdout is only watched once the run has begun
            looks = {"ncols": 100, "leave": False, "delay": 0.01}  # delay: not at once
            total = state.epochs * state.steps_per_epoch
            self.bar = tqdm(total=total, unit="step", file=sys.stdout, **looks)
        self.bar.update(state.step - self.bar.n)

    def after_epoch(self, state: TrainingState) -> None:
        self.bar.write(describe_epoch(state.history[-1], state.epochs), file=sys.stdout)
        if state.finished:
            self.bar.close()


class TensorBoard:
    """The epochs as event files under results/<recipe>/tensorboard/<kind>."""

    def __init__(self, config: TrainConfig, kind: RunKind) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError("--tensorboard needs the tensorboard package; run: pip install tensorboard") from None
        folder = config.run_dir / "tensorboard" / kind
        require_writable(folder)
        self.writer = SummaryWriter(str(folder))

    def after_step(self, state: TrainingState) -> None:
        """Steps are not logged: a value per step would make the device wait."""

    def after_epoch(self, state: TrainingState) -> None:
        epoch = state.history[-1]
        values = epoch.model_dump(exclude={"epoch", "communication"})
        if epoch.communication:
            values |= {f"communication/{name}": value for name, value in epoch.communication.model_dump().items()}
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch.epoch)
        if state.finished:
            self.writer.close()


def progress_callbacks(config: TrainConfig, world: World) -> list[Callback]:
    """A bar where one process writes to a terminal or notebook, else lines; nothing on other ranks than 0."""
    if not world.is_main:
        return []
    shows_bars = sys.stdout.isatty() or "ipykernel" in sys.modules
    callbacks: list[Callback] = [Bar() if shows_bars and not world.launched else Lines()]
    return [*callbacks, TensorBoard(config, world.kind)] if config.tensorboard else callbacks
