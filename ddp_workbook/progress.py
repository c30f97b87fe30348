"""How far a run is, for whoever watches: a bar in a terminal or notebook, plain lines through a pipe."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import Arithmetic, choose_threads
from ddp_workbook.distributed import World
from ddp_workbook.engine import Progress, Reporter
from ddp_workbook.errors import InputError
from ddp_workbook.loader import TrainLoader
from ddp_workbook.record import EpochRecord, RunKind, RunRecord

SECONDS_BETWEEN_LINES = 10


def describe_epoch(epoch: EpochRecord, epochs: int) -> str:
    """One line on a finished epoch."""
    return (
        f"epoch {epoch.epoch:>2}/{epochs}  loss {epoch.train_loss:.3f}  train {epoch.train_accuracy:6.2%}  "
        f"test {epoch.test_accuracy:6.2%}  lr {epoch.learning_rate:<8.3g}  {epoch.train_seconds:6.1f} s + "
        f"{epoch.evaluation_seconds:4.1f} s  {epoch.images_per_second:6.0f} images/s"
    )


def describe_run(config: TrainConfig, world: World, amp: Arithmetic, loader: TrainLoader) -> str:
    """One line on a run that begins."""
    threads = choose_threads(config.threads, world.local_size)
    return (
        f"{config.recipe} on {amp.device.type}: {world.size} process(es) x {threads} thread(s), {amp.precision}, "
        f"global batch {config.global_batch(world.size)}, peak lr {config.peak_lr(world.size):g}, "
        f"{config.epochs} epochs of {loader.steps} steps"
    )


def describe_result(run: RunRecord) -> str:
    """One line on a run that has finished."""
    return (
        f"test accuracy {run.test_accuracy:.2%} after {run.train_seconds:.1f} s of training and "
        f"{run.evaluation_seconds:.1f} s of evaluation, {run.images_per_second:.0f} images/s"
    )


class Lines:
    """A line per epoch, and one every ten seconds in between."""

    def __init__(self, config: TrainConfig) -> None:
        self.epochs = config.epochs
        self.last = self.epoch_start = time.perf_counter()
        self.epoch = self.first = 0

    def on_step(self, progress: Progress) -> None:
        now = time.perf_counter()
        if progress.epoch != self.epoch:  # a run that goes on may begin in the middle of one
            self.epoch, self.first = progress.epoch, progress.step
            self.epoch_start = self.last = now
        elif now - self.last >= SECONDS_BETWEEN_LINES and progress.step < progress.steps:
            self.last = now
            share = (progress.step - self.first) / (progress.steps - self.first)
            left = (now - self.epoch_start) * (1 - share) / share
            print(
                f"epoch {progress.epoch:>2}/{self.epochs}  step {progress.step}/{progress.steps}  "
                f"loss {progress.mean_loss():.3f}  epoch done in {left:.0f} s",
                flush=True,
            )

    def on_epoch(self, epoch: EpochRecord) -> None:
        print(describe_epoch(epoch, self.epochs), flush=True)


class Bar:
    """One bar for the whole run, and a line per epoch above it."""

    def __init__(self, config: TrainConfig, steps_per_epoch: int) -> None:
        self.epochs = config.epochs
        self.bar = tqdm(total=config.epochs * steps_per_epoch, unit="step", file=sys.stdout, ncols=100, leave=False)

    def on_step(self, progress: Progress) -> None:
        self.bar.update((progress.epoch - 1) * progress.steps + progress.step - self.bar.n)

    def on_epoch(self, epoch: EpochRecord) -> None:
        self.bar.write(describe_epoch(epoch, self.epochs), file=sys.stdout)
        if epoch.epoch == self.epochs:
            self.bar.close()


class TensorBoard:
    """The epochs as event files under results/<recipe>/tensorboard/<kind>."""

    def __init__(self, config: TrainConfig, kind: RunKind) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError("--tensorboard needs the tensorboard package; run: pip install tensorboard") from None
        self.writer = SummaryWriter(str(config.run_dir / "tensorboard" / kind))
        self.epochs = config.epochs

    def on_step(self, progress: Progress) -> None:
        """Steps are not logged: a value per step would make the device wait."""

    def on_epoch(self, epoch: EpochRecord) -> None:
        values = epoch.model_dump(exclude={"epoch", "communication"})
        if epoch.communication:
            values |= {f"communication/{name}": value for name, value in epoch.communication.model_dump().items()}
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch.epoch)
        if epoch.epoch == self.epochs:
            self.writer.close()


def make_reporters(config: TrainConfig, world: World, kind: RunKind, steps_per_epoch: int) -> list[Reporter]:
    """A bar where one process owns a terminal, else lines; nothing on other ranks than 0."""
    if not world.is_main:
        return []
    plain = world.launched or not sys.stdout.isatty()
    reporters: list[Reporter] = [Lines(config) if plain else Bar(config, steps_per_epoch)]
    return [*reporters, TensorBoard(config, kind)] if config.tensorboard else reporters
