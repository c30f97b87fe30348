"""What a rank keeps in memory and sends in a step, as formulas: DDP, ZeRO-1 and fully sharded.

N ranks, M bytes of parameters. Rajbhandari et al. 2020 (arXiv:1910.02054) derive them in sections 5 and 7; their ZeRO-1
sends less than ours, as much as DDP, since a reduce-scatter takes the place of DDP's all-reduce.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from ddp_workbook.records.rank_bytes import CollectiveName

Shard = Literal["none", "optimizer", "full"]
PASSES: dict[CollectiveName, int] = {"all_reduce": 2, "reduce_scatter": 1, "all_gather": 1, "broadcast": 1}
"""How often a collective sends the share (N - 1) / N of a tensor, per rank and on average over the ranks."""
GLOO_PASSES = PASSES | {"reduce_scatter": 2}
"""Gloo has no reduce-scatter: torch all-reduces the whole tensor, and each rank takes its part of the sum."""
STATE_COPIES = {"sgd": 1, "adam": 2, "adamw": 2}
"""Values that an optimizer keeps for each parameter: SGD its momentum, Adam two moments."""


class ModelBytes(NamedTuple):
    """What a rank keeps between two steps."""

    parameters: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        return sum(self)


class StepBytes(NamedTuple):
    """What a training step of one process keeps in memory when its backward pass begins, or has ended."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    """Results of the forward pass that the backward pass needs; they grow with the batch, the others do not."""

    @property
    def total(self) -> float:
        return sum(self)


def kept_bytes(shard: Shard, ranks: int, parameters: int, copies: int) -> ModelBytes:
    """Per rank, on average, for `parameters` bytes of parameters and `copies` values of optimizer state for each."""
    share, state = parameters / ranks, copies * parameters
    if shard == "full":
        return ModelBytes(share, share, state / ranks)
    return ModelBytes(parameters, parameters, state / ranks if shard == "optimizer" else state)


def step_collectives(shard: Shard, parameters: int) -> dict[CollectiveName, int]:
    """What the collectives of one step work on, in bytes.

    Gradients are all-reduced; and then ZeRO-1 sends new parameters; fully sharded, parameters are gathered twice, for
    forward and for backward, and gradients are reduce-scattered.
    """
    return {
        "none": {"all_reduce": parameters},
        "optimizer": {"all_reduce": parameters, "broadcast": parameters},
        "full": {"all_gather": 2 * parameters, "reduce_scatter": parameters},
    }[shard]


def step_bytes(shard: Shard, ranks: int, parameters: int) -> float:
    """Bytes that a rank sends in one step when every collective is a ring: 2 (DDP) or 3 times (N - 1) / N times M."""
    return sent_bytes(step_collectives(shard, parameters), ranks, "nccl")


def sent_bytes(collectives: Mapping[CollectiveName, int], ranks: int, backend: str) -> float:
    """Bytes that a rank sends for these collectives (bytes of whole tensors by kind), mean over the ranks."""
    passes = GLOO_PASSES if backend == "gloo" else PASSES
    return (ranks - 1) / ranks * sum(passes[kind] * size for kind, size in collectives.items())
