"""One optimizer without sharding, on a copy of the net: the oracle of the lab sharded_optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Values = dict[str, Tensor]  # of parameters, by name; flat


@dataclass(frozen=True)
class Case:
    """Which optimizer, and how it is called."""

    words: str
    cls: type[Optimizer]
    options: dict
    arrange: Callable[[nn.Module], Iterable]
    """A net's parameters, or groups of them."""
    decay: float | None = None
    """Of the learning rate after each step; weight decay grows as it falls. None: both stay."""


def trained(params: Iterable[Tensor]) -> list[Tensor]:
    """Those that are not frozen."""
    return [p for p in params if p.requires_grad]


def values(net: nn.Module) -> Values:
    """A copy of its parameters."""
    return {name: p.detach().clone().flatten() for name, p in net.named_parameters()}


class Unsharded:
    """The net's copy and its optimizer."""

    def __init__(self, case: Case, net: nn.Module) -> None:
        self.net = copy.deepcopy(net)
        self.optimizer = case.cls(case.arrange(self.net), **case.options)

    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step, with the gradients of the trained parameters."""
        self.before, self.gradients = copy.deepcopy((self.net, self.optimizer)), gradients
        self.old, self.new = values(self.net), self._step(self.net, self.optimizer)

    def _step(self, net: nn.Module, optimizer: Optimizer) -> Values:
        for p, gradient in zip(trained(net.parameters()), self.gradients, strict=True):
            p.grad = gradient.clone()
        optimizer.step()
        return values(net)

    def explain(self, found: Sequence[Values]) -> tuple[str, str] | None:
        """A mistake that gives the values which all ranks have found after this step: its diagnosis, and a sentence."""
        for diagnosis, (mistake, sentence) in MISTAKES.items():
            net, optimizer = copy.deepcopy(self.before)
            mistake(optimizer)
            expected = self._step(net, optimizer)
            if all(torch.equal(each[name], expected[name]) for each in found for name in expected):
                return diagnosis, sentence
        return None


def _without_state(optimizer: Optimizer) -> None:
    optimizer.state.clear()


def _with_first_options(optimizer: Optimizer) -> None:
    _with_first_decay(optimizer)
    for group in optimizer.param_groups:
        group["lr"] = optimizer.defaults["lr"]


def _with_first_decay(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        group["weight_decay"] = optimizer.defaults["weight_decay"] if group["weight_decay"] else 0.0


def _in_one_group(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        group.update({option: value for option, value in optimizer.defaults.items() if option != "lr"})


MISTAKES: dict[str, tuple[Callable[[Optimizer], None], str]] = {
    "state-lost": (_without_state, "the new weights are those of an optimizer in its first step. Where is its state "
                                   "of the step before?"),
    "old-rate": (_with_first_options, "the new weights are those of the learning rate at the start. A scheduler has "
                                   "changed group['lr'] in param_groups since then"),
    "old-decay": (_with_first_decay, "the new weights are those of the weight_decay at the start. In param_groups "
                                     "other options than lr can be changed too"),
    "groups-lost": (_in_one_group, "the new weights are those of one group with the common options. Some parameters "
                                   "have a weight_decay of their own"),
}  # fmt: skip
"""By diagnosis: what, done to the optimizer before its step, gives the same new weights; and how to say it."""
