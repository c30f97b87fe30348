"""Running loss and accuracy of an epoch, computed lazily."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class StepOutput(NamedTuple):
    """What the model made of one batch, still on the device: mean loss (), logits (n, classes), labels (n,)."""

    loss: Tensor
    logits: Tensor
    labels: Tensor


def sum_outputs(outputs: Sequence[StepOutput]) -> Tensor:
    """(loss summed over images, correct predictions, images), float64 on the CPU. Waits for the device."""
    sizes = torch.tensor([len(output.labels) for output in outputs], dtype=torch.float64)
    losses = torch.stack([output.loss for output in outputs]).cpu().double()
    labels = torch.cat([output.labels for output in outputs])
    correct = torch.cat([output.logits for output in outputs]).argmax(1) == labels
    return torch.stack([losses @ sizes, correct.sum().cpu().double(), sizes.sum()])


class RunningMetrics:
    """Loss and accuracy of an epoch's steps on this rank: `sums` is sum_outputs() of its first `counted` steps.

    Outputs of later steps wait until compute() is called. Counting takes a dozen small operations, and on an
    accelerator it makes the processor wait. After every step of the MLP that would be 5 % of its time; for many steps
    together it takes hardly longer than for one.
    """

    def __init__(self, counted: int = 0, sums: Tensor | None = None) -> None:
        self.counted = counted
        self.sums = torch.zeros(3, dtype=torch.float64) if sums is None else sums
        self.first_bad: int | None = None
        """Number, from 1, of the first counted step whose loss is infinite or NaN."""
        self._waiting: list[list[StepOutput]] = []

    @property
    def steps(self) -> int:
        """Steps so far, counted or waiting."""
        return self.counted + len(self._waiting)

    def add(self, outputs: list[StepOutput]) -> None:
        """Add the outputs of one optimizer step."""
        self._waiting.append(outputs)

    def compute(self) -> Tensor:
        """The sums over all steps so far."""
        if self._waiting:
            self.sums = self.sums + sum_outputs([output for step in self._waiting for output in step])
            if self.first_bad is None and not math.isfinite(self.sums[0]):
                bad = [not all(output.loss.isfinite() for output in step) for step in self._waiting]
                self.first_bad = self.counted + bad.index(True) + 1
            self.counted = self.steps
            self._waiting.clear()
        return self.sums

    def mean_loss(self) -> float:
        """Mean over the images so far."""
        loss_sum, _, images = self.compute().tolist()
        return loss_sum / images
