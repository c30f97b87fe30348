"""What training steps amount to: loss and right answers, counted when somebody asks."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Outcome(NamedTuple):
    """What one batch left behind, still on the device: its mean loss (), logits (n, classes) and labels (n,)."""

    loss: Tensor
    logits: Tensor
    labels: Tensor


def add_up(outcomes: list[Outcome]) -> Tensor:
    """(loss summed over images, images classified right, images), float64 on the CPU. Waits for the device."""
    sizes = torch.tensor([len(one.labels) for one in outcomes], dtype=torch.float64)
    losses = torch.stack([one.loss for one in outcomes]).cpu().double()
    right = torch.cat([one.logits for one in outcomes]).argmax(1) == torch.cat([one.labels for one in outcomes])
    return torch.stack([losses @ sizes, right.sum().cpu().double(), sizes.sum()])


class Tally:
    """The steps of an epoch on this rank. `sums` is add_up's of the `counted` first ones; the others wait.

    Counting takes a dozen small operations, and on an accelerator it makes the processor wait. After every step of the
    MLP that would be a twentieth of its time; for many steps at once it takes hardly longer than for one.
    """

    def __init__(self, counted: int = 0, sums: Tensor | None = None) -> None:
        self.counted = counted
        self.sums = torch.zeros(3, dtype=torch.float64) if sums is None else sums
        self.first_bad: int | None = None
        """Number, from 1, of the first counted step whose loss is infinite or no number."""
        self._waiting: list[list[Outcome]] = []

    @property
    def steps(self) -> int:
        """Done so far, counted or not."""
        return self.counted + len(self._waiting)

    def add(self, outcomes: list[Outcome]) -> None:
        """Of one optimizer step."""
        self._waiting.append(outcomes)

    def count(self) -> Tensor:
        """The sums over all steps so far."""
        if self._waiting:
            self.sums = self.sums + add_up([one for step in self._waiting for one in step])
            if self.first_bad is None and not math.isfinite(self.sums[0]):
                bad = [not all(one.loss.isfinite() for one in step) for step in self._waiting]
                self.first_bad = self.counted + bad.index(True) + 1
            self.counted = self.steps
            self._waiting.clear()
        return self.sums

    def mean_loss(self) -> float:
        """Over the images so far."""
        loss_sum, _, images = self.count().tolist()
        return loss_sum / images
