"""The few collectives that a run needs besides DDP's own. Without a process group each returns its input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ddp_workbook.errors import InputError


def all_reduce_sum(value: Tensor) -> Tensor:
    """Sum over all ranks, in place and on every rank."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def dist_sum(values: Sequence[float], device: torch.device) -> list[float]:
    """Sum of each number over all ranks, on every rank, in float64."""
    return _reduce(values, dist.ReduceOp.SUM, device)


def dist_max(values: Sequence[float], device: torch.device) -> list[float]:
    """Maximum of each number over all ranks, on every rank, in float64."""
    return _reduce(values, dist.ReduceOp.MAX, device)


def _reduce(values: Sequence[float], operation: dist.ReduceOp, device: torch.device) -> list[float]:
    if not dist.is_initialized():
        return list(values)
    joined = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(joined, operation)
    return joined.tolist()


def gather_objects(value: object) -> list:
    """The values of all ranks, in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(function: Callable[[], Any]) -> Any:
    """Call the function on rank 0 and return its result on every rank. An InputError is raised on all of them."""
    if not dist.is_initialized():
        return function()
    answer: list = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = function()
        except InputError as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise InputError(answer[1])
    return answer[0]


@contextmanager
def refused_together() -> Iterator[None]:
    """For a block that each rank runs on its own: an InputError of one rank is raised on all of them.

    Otherwise the others would wait for that rank until the time-out. The block must not contain a collective.
    """
    own = None
    try:
        yield
    except InputError as error:
        own = error
    messages = gather_objects(own and str(own))
    if own:
        raise own
    for rank, message in enumerate(messages):
        if message is not None:
            raise InputError(f"rank {rank}: {message}")
