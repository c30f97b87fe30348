"""The training step, the epoch, the evaluation, and the run that is made of them. One code for any world size."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from ddp_workbook.checkpoint import PartialEpoch, TrainingState
from ddp_workbook.config import TrainConfig
from ddp_workbook.datasets import Dataset
from ddp_workbook.devices import Arithmetic, synchronize
from ddp_workbook.distributed import (
    World,
    average_buffers,
    communication_since,
    gradient_sync,
    reduce_list,
    reduce_sum,
    unwrap,
)
from ddp_workbook.errors import diverged
from ddp_workbook.loader import Batch, TrainLoader, evaluation_batches
from ddp_workbook.record import Communication, EpochRecord
from ddp_workbook.tally import Outcome, Tally
from ddp_workbook.watch import Watch, add_communication

START_FACTOR = 1 / 25  # the warm-up begins at this share of the peak learning rate
END_FACTOR = 1e-4 / 25  # and one-cycle ends here; both as in torch's OneCycleLR


@dataclass
class Progress:
    """What a training step reports. The mean loss is that of this rank's images since the epoch began."""

    epoch: int
    step: int
    steps: int
    mean_loss: Callable[[], float]


class Reporter(Protocol):
    """Whoever wants to know how the run goes."""

    def on_step(self, progress: Progress) -> None: ...

    def on_epoch(self, epoch: EpochRecord) -> None: ...


def build_optimizer(model: nn.Module, config: TrainConfig, processes: int) -> torch.optim.Optimizer:
    """Nesterov SGD or Adam, fused into one kernel, with the learning rate scaled to the global batch.

    Biases and normalisation parameters, all of one dimension, are not decayed (Goyal et al. 2017; He et al. 2019). The
    last linear layer has a learning rate of its own, config.head_lr times that of the others.
    """
    head = {id(p) for p in [m for m in model.modules() if isinstance(m, nn.Linear)][-1].parameters()}
    lr = config.peak_lr(processes)
    alike: dict[tuple[float, float], list[nn.Parameter]] = {}  # one kernel updates all with the same rate and decay
    for p in model.parameters():
        settings = lr * (config.head_lr if id(p) in head else 1.0), config.weight_decay if p.ndim > 1 else 0.0
        alike.setdefault(settings, []).append(p)
    groups = [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in alike.items()]
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=lr, fused=True)
    return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)


def learning_rate_factor(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Share of the peak learning rate for optimizer step `step`, counted from 0 over the whole run."""
    last = config.epochs * steps_per_epoch - 1
    warmup = config.warmup * (last + 1) - 1  # the step that reaches the peak
    if step < warmup:
        share = step / warmup
        climbed = (1 - math.cos(math.pi * share)) / 2 if config.schedule == "onecycle" else share
        return START_FACTOR + (1 - START_FACTOR) * climbed
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "step":
        return config.step_gamma ** (step // (config.step_epochs * steps_per_epoch))
    share = (step - warmup) / max(last - warmup, 1)
    return END_FACTOR + (1 - END_FACTOR) * (1 + math.cos(math.pi * min(share, 1.0))) / 2


def build_schedule(
    optimizer: torch.optim.Optimizer, config: TrainConfig, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Sets the learning rate before each optimizer step."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, steps_per_epoch, config)
    )


def train_step(
    model: nn.Module,
    batches: list[Batch],
    optimizer: torch.optim.Optimizer,
    amp: Arithmetic,
    smoothing: float,
) -> list[Outcome]:
    """One optimizer step over `batches`; under DDP the backward pass of the last one averages the gradients.

    Returns what each batch left, still on the device: nothing waits, and nothing is counted yet.
    """
    optimizer.zero_grad(set_to_none=True)
    outcomes = []
    for number, (images, labels) in enumerate(batches, start=1):
        with gradient_sync(model, wanted=number == len(batches)):  # NEW: average in the last backward only
            with amp.autocast():
                logits = model(images)
                loss = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
            amp.scaler.scale(loss).backward(torch.full_like(loss, 1 / len(batches)))
        outcomes.append(Outcome(loss.detach(), logits.detach(), labels))
    amp.scaler.step(optimizer)
    amp.scaler.update()
    return outcomes


def train_epoch(
    model: nn.Module,
    loader: TrainLoader,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    amp: Arithmetic,
    config: TrainConfig,
    epoch: int,
    reporters: Sequence[Reporter] = (),
    tally: Tally | None = None,
    after_step: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """All steps of one epoch (counted from 1) that `tally` does not have yet; it is kept up to date.

    Returns mean loss and accuracy over the images of all ranks.
    """
    model.train()
    tally = tally or Tally()
    for batches in loader.epoch(epoch, tally.steps):
        tally.add(train_step(model, batches, optimizer, amp, config.label_smoothing))
        schedule.step()
        for reporter in reporters:
            reporter.on_step(Progress(epoch, tally.steps, loader.steps, tally.mean_loss))
        after_step()
    loss_sum, right, images = reduce_list(tally.count().tolist(), dist.ReduceOp.SUM, amp.device)  # NEW: of all ranks
    return loss_sum / images, right / images


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch], classes: int, amp: Arithmetic) -> tuple[Tensor, float]:
    """Confusion counts (classes, classes), true class by row, and mean cross-entropy over the images of all ranks.

    The ranks may have different numbers of batches: they meet once, when the counts are summed.
    """
    model.eval()
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=amp.device)
    loss_sum = torch.zeros((), device=amp.device)
    for images, labels in batches:
        with amp.autocast():
            logits = model(images)
        loss_sum += functional.cross_entropy(logits.float(), labels, reduction="sum")
        confusion += torch.bincount(labels * classes + logits.argmax(1), minlength=classes * classes)
    confusion, loss_sum = reduce_sum(confusion), reduce_sum(loss_sum)  # NEW: each rank has tested its share
    return confusion.view(classes, classes).cpu(), loss_sum.item() / max(int(confusion.sum()), 1)


def accuracy(confusion: Tensor) -> float:
    """Share of the images on the diagonal."""
    return confusion.diagonal().sum().item() / max(int(confusion.sum()), 1)


def fit(
    state: TrainingState,
    loader: TrainLoader,
    data: Dataset,
    config: TrainConfig,
    world: World,
    reporters: Sequence[Reporter] = (),
    watch: Watch | None = None,
) -> tuple[list[EpochRecord], Tensor]:
    """Train up to config.epochs, evaluating after each. Returns the history and the last confusion counts.

    A state that a checkpoint was put into goes on from there. Raises Stopped when the watch was asked to stop.
    """
    watch, confusion = watch or Watch(), torch.empty(0)
    if state.fresh:
        torch.manual_seed(config.seed + world.rank)  # NEW: dropout draws on each rank for itself
    test = data.test.to(state.amp.device)
    while state.epoch < config.epochs:
        loss, right, seconds, communication = _train_epoch_of(state, loader, config, reporters, watch)
        trained = time.perf_counter()
        average_buffers(state.model)  # NEW: all ranks test the same model
        batches = evaluation_batches(test, loader.normalise, world)
        confusion, test_loss = evaluate(unwrap(state.model), batches, len(data.classes), state.amp)
        if not math.isfinite(test_loss):  # the last step's doing; all ranks see the same
            raise diverged(f"the test loss is no longer a number after epoch {state.epoch + 1}")
        state.epoch, state.partial = state.epoch + 1, PartialEpoch()
        state.history.append(
            EpochRecord(
                epoch=state.epoch,
                train_loss=loss,
                train_accuracy=right,
                test_loss=test_loss,
                test_accuracy=accuracy(confusion),
                learning_rate=last_rate(state.schedule, config, loader.steps),
                train_seconds=seconds,
                evaluation_seconds=time.perf_counter() - trained,
                images_per_second=loader.steps * config.global_batch(world.size) / seconds,
                communication=communication,
            )
        )
        for reporter in reporters:
            reporter.on_epoch(state.history[-1])
        if state.epoch < config.epochs:
            watch.after_epoch(state, loader.steps)
    return state.history, confusion


def _train_epoch_of(
    state: TrainingState, loader: TrainLoader, config: TrainConfig, reporters: Sequence[Reporter], watch: Watch
) -> tuple[float, float, float, Communication | None]:
    """The rest of the epoch under way: mean loss, accuracy, seconds of training, traffic of the whole epoch."""
    model, partial = state.model, state.partial
    partial.start_clock()
    loss, right = train_epoch(
        model, loader, state.optimizer, state.schedule, state.amp, config, state.epoch + 1, reporters, partial.tally,
        after_step=lambda: watch.after_step(state, loader.steps),
    )  # fmt: skip
    synchronize(state.amp.device)
    seconds = partial.clock.seconds
    traffic = communication_since(model)  # NEW: what of that time the ranks spent on gradients
    return loss, right, seconds, add_communication(partial.communication, traffic)


def last_rate(schedule: torch.optim.lr_scheduler.LRScheduler, config: TrainConfig, steps_per_epoch: int) -> float:
    """Learning rate of the optimizer step just taken (the schedule itself already stands at the next one)."""
    return schedule.base_lrs[0] * learning_rate_factor(schedule.last_epoch - 1, steps_per_epoch, config)
