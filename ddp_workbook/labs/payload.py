"""Payloads that tell who was counted how often: rank r contributes 16^r in every element, so that a sum can be read.

Up to five ranks, and up to 15 times each, all sums are exact in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 16
MOST_RANKS = 5


def payload(shape: tuple[int, ...] | int, rank: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor whose elements are all 16^rank."""
    return torch.full((shape,) if isinstance(shape, int) else shape, BASE**rank, dtype=dtype)


def counts(value: float, ranks: int) -> list[int] | None:
    """How often each rank's contribution is in this sum; None when it is no sum of contributions."""
    number = round(value)
    if number != value or not 0 <= number < BASE**ranks:
        return None
    return [number // BASE**rank % BASE for rank in range(ranks)]


def describe(value: float, ranks: int) -> str:
    """The sum in words: 'rank 1 twice, rank 0 missing'."""
    found = counts(value, ranks)
    if found is None:
        scaled = counts(value * ranks, ranks)
        if scaled == [1] * ranks:
            return f"1/{ranks} of the sum"
        return f"{value:g}, which is not a sum of the ranks' values"
    words = {0: "missing", 2: "twice"}
    parts = [f"rank {rank} {words.get(n, f'{n} times')}" for rank, n in enumerate(found) if n != 1]
    return ", ".join(parts) or "every rank once"
