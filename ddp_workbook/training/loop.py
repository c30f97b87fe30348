"""The training step, the epoch, the evaluation, and the run made of them: one code for any number of processes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import Precision, synchronize
from ddp_workbook.distributed.collectives import all_reduce_sum, dist_sum
from ddp_workbook.distributed.ddp import (
    add_communication,
    average_buffers,
    gradient_sync,
    take_communication,
    unwrap,
)
from ddp_workbook.distributed.process_group import World
from ddp_workbook.errors import diverged
from ddp_workbook.records.run import EpochRecord
from ddp_workbook.training.balance import loss_weight
from ddp_workbook.training.datasets import Dataset
from ddp_workbook.training.loader import Batch, TrainLoader, evaluation_batches, stream
from ddp_workbook.training.metrics import StepOutput
from ddp_workbook.training.optim import last_rate
from ddp_workbook.training.state import PartialEpoch, TrainingState


class Callback(Protocol):
    """Called by fit() on every rank: after each optimizer step, and after each epoch and its evaluation."""

    def after_step(self, state: TrainingState) -> None: ...

    def after_epoch(self, state: TrainingState) -> None: ...


def train_step(
    model: nn.Module,
    batches: list[Batch],
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    smoothing: float,
    weight: float = 1.0,
) -> list[StepOutput]:
    """One optimizer step over `batches`; under DDP the backward pass of the last one averages the gradients.

    `weight`: this rank's batch size divided by the mean one, where --balance makes them differ (balance.loss_weight).
    Returns the output of each batch, still on the device: nothing waits, and nothing is counted yet.
    """
    optimizer.zero_grad(set_to_none=True)
    outputs = []
    for number, (images, labels) in enumerate(batches, start=1):
        with gradient_sync(model, enabled=number == len(batches)):  # NEW: synchronize in the last backward only
            with precision.autocast():
                logits = model(images)
                loss = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
            precision.scaler.scale(loss).backward(torch.full_like(loss, weight / len(batches)))
        outputs.append(StepOutput(loss.detach(), logits.detach(), labels))
    precision.scaler.step(optimizer)
    precision.scaler.update()
    return outputs


def train_epoch(
    state: TrainingState, loader: TrainLoader, config: TrainConfig, callbacks: Sequence[Callback] = ()
) -> tuple[float, float]:
    """The steps of the current epoch that are not done yet.

    Returns mean loss and accuracy over the images of all ranks.
    """
    state.model.train()
    weight = loss_weight(state.batch_sizes, loader.world.rank)  # NEW: 1, unless --balance splits the batch unequally
    for batches in loader.epoch(state.epoch + 1, state.partial.step, state.batch_sizes):
        with state.traffic.step():  # NEW: one step's communication is counted
            outputs = train_step(state.model, batches, state.optimizer, state.precision, config.label_smoothing, weight)
        state.schedule.step()
        state.partial.metrics.add(outputs)
        for callback in callbacks:
            callback.after_step(state)
    sums = state.partial.metrics.compute().tolist()
    loss_sum, correct, images = dist_sum(sums, state.device)  # NEW: of all ranks
    return loss_sum / images, correct / images


class Evaluation(NamedTuple):
    """What a test found. Confusion and loss are those of the images of all ranks, `correct` is this rank's own."""

    confusion: Tensor
    """Counts (classes, classes), int64, true class by row, on the CPU."""
    loss: float
    """Mean cross-entropy."""
    correct: Tensor
    """Whether each image of this rank's shard is recognized, in the shard's order: (images,) bool, on the CPU."""


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch], classes: int, precision: Precision) -> Evaluation:
    """Test the model on this rank's batches, and sum the counts over the ranks.

    The ranks may have different numbers of batches: they meet once, when the counts are summed.
    """
    model.eval()
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=precision.device)
    loss_sum = torch.zeros((), device=precision.device)
    correct = [torch.empty(0, dtype=torch.bool, device=precision.device)]  # a rank may have no batch
    for images, labels in batches:
        with precision.autocast():
            logits = model(images)
        loss_sum += functional.cross_entropy(logits.float(), labels, reduction="sum")
        predictions = logits.argmax(1)
        confusion += torch.bincount(labels * classes + predictions, minlength=classes * classes)
        correct.append(predictions == labels)
    confusion, loss_sum = all_reduce_sum(confusion), all_reduce_sum(loss_sum)  # NEW: each rank has tested its share
    mean_loss = loss_sum.item() / max(int(confusion.sum()), 1)
    return Evaluation(confusion.view(classes, classes).cpu(), mean_loss, torch.cat(correct).cpu())


def accuracy(confusion: Tensor) -> float:
    """Share of the images on the diagonal."""
    return confusion.diagonal().sum().item() / max(int(confusion.sum()), 1)


def fit(
    state: TrainingState,
    loader: TrainLoader,
    data: Dataset,
    config: TrainConfig,
    world: World,
    callbacks: Sequence[Callback] = (),
) -> Evaluation:
    """Train up to config.epochs and evaluate after each. Returns the last evaluation; state.history grows.

    A state that was restored from a checkpoint continues there. Raises InputError when the loss is no longer finite,
    and whatever a callback raises to end the run early.
    """
    if state.step == 0:
        torch.manual_seed(stream(config.seed, world.rank))  # NEW: dropout differs between ranks
    test, tested = data.test.to(state.device), Evaluation(torch.empty(0), math.nan, torch.empty(0))
    while not state.finished:
        state.partial.start_clock()
        loss, correct = train_epoch(state, loader, config, callbacks)
        synchronize(state.device)
        seconds = state.partial.clock.seconds
        communication = add_communication(state.partial.communication, take_communication(state.model))  # NEW
        started = time.perf_counter()
        average_buffers(state.model, loss_weight(state.batch_sizes, world.rank))  # NEW: all ranks test the same model
        batches = evaluation_batches(test, loader.normalize, world)
        tested = evaluate(unwrap(state.model), batches, len(data.classes), state.precision)
        if not math.isfinite(tested.loss):  # caused by the last step; all ranks see the same
            raise diverged(f"the test loss is not finite after epoch {state.epoch + 1}")
        state.epoch, state.partial = state.epoch + 1, PartialEpoch()
        state.history.append(
            EpochRecord(
                epoch=state.epoch,
                train_loss=loss,
                train_accuracy=correct,
                test_loss=tested.loss,
                test_accuracy=accuracy(tested.confusion),
                learning_rate=last_rate(state.schedule, config, loader.steps),
                train_seconds=seconds,
                evaluation_seconds=time.perf_counter() - started,
                images_per_second=loader.steps * config.global_batch(world.size) / seconds,
                communication=communication,
            )
        )
        for callback in callbacks:
            callback.after_epoch(state)
    return tested
