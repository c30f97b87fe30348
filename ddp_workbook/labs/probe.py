"""The weighing probe: a model whose gradient says with which weight each sample entered the step.

A linear model without bias on one-hot inputs: sample j is the j-th unit vector, so the gradient of weight j is the
factor with which sample j's loss was counted. Sum for mean, a sample left out, counted twice or padded: all are read
off directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn


def scale(samples: int) -> nn.Linear:
    """The model for so many samples, in float64, with weights 0."""
    model = nn.Linear(samples, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    return model


def one_hot(samples: Sequence[int], of: int) -> Tensor:
    """Inputs (n, of) that stand for these samples."""
    return torch.eye(of, dtype=torch.float64)[list(samples)]


def weights(model: nn.Linear) -> list[Fraction]:
    """The weight of each sample in the gradient, as a fraction."""
    grad = model.weight.grad
    values = [0.0] * model.in_features if grad is None else grad.flatten().tolist()
    return [Fraction(value).limit_denominator(10_000) for value in values]


def describe(found: Sequence[Fraction], owners: Sequence[Sequence[int]], noun: str = "samples") -> str:
    """Weights in words, by rank that has any: 'samples of rank 0 weigh 1/4, those of rank 1 weigh 1/8'."""
    parts = []
    for rank, samples in enumerate(owners):
        if not samples:
            continue
        values = sorted({found[sample] for sample in samples})
        text = " or ".join(map(str, values)) if len(values) < 4 else f"between {values[0]} and {values[-1]}"
        parts.append(f"{noun if not parts else 'those'} of rank {rank} weigh {text}")
    return ", ".join(parts)
