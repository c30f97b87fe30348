"""What the judges of the labs on DistributedDataParallel share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddp_workbook.labs.ledger import Entry

Owners = list[list[list[int]]]  # the samples of each micro-batch of each rank


@dataclass(frozen=True)
class Pass:
    """One forward or backward pass through a watched model."""

    kind: str
    samples: int
    synced: bool
    """DDP's flag require_backward_grad_sync as it was in this pass. What counts is the one in forward."""


class Watched(nn.Module):
    """A model that writes down its passes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.passes: list[Pass] = []
        self.synced = lambda: True

    def forward(self, inputs: Tensor) -> Tensor:
        """The model's."""
        outputs = self.model(inputs)
        if outputs.requires_grad:
            self._write("forward", inputs)
            outputs.register_hook(lambda _: self._write("backward", inputs))
        return outputs

    def _write(self, kind: str, inputs: Tensor) -> None:
        self.passes.append(Pass(kind, len(inputs), self.synced()))


def wrapped(model: nn.Module, inputs: Tensor) -> tuple[DistributedDataParallel, Watched]:
    """The model in DDP, ready: after its first two steps, in which DDP rebuilds its buckets and sends their order."""
    watched = Watched(model)
    ddp = DistributedDataParallel(watched)
    for _ in range(2):
        ddp(inputs).sum().backward()
    ddp.zero_grad()
    watched.passes.clear()
    watched.synced = lambda: ddp.require_backward_grad_sync
    return ddp, watched


def most_alive(passes: Sequence[Pass]) -> int:
    """Of the samples whose activations were kept at one time: those between their forward and their backward pass."""
    alive = most = 0
    for each in passes:
        alive += each.samples if each.kind == "forward" else -each.samples
        most = max(most, alive)
    return most


def flags(passes: Sequence[Pass]) -> list[tuple[bool, bool]]:
    """DDP's flag in each forward pass and in the backward pass of the same number."""
    forward, backward = ([each.synced for each in passes if each.kind == kind] for kind in ("forward", "backward"))
    return list(zip(forward, backward, strict=False))


def float_bytes(entries: Sequence[Entry]) -> int:
    """Bytes of real numbers in these collectives: gradients, not counts or flags."""
    return sum(entry.bytes for entry in entries if entry.dtype in ("float16", "bfloat16", "float32", "float64"))


def relative_error(tensors: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference, over the largest expected value."""
    found, right = (torch.cat([each.detach().flatten() for each in part]) for part in (tensors, expected))
    return float((found - right).abs().max() / right.abs().max())


def fate(found: Sequence[Sequence[Fraction]], owners: Owners, number: int) -> str:
    """What became of the micro-batches of this number, by the weights that each rank found.

    'shared': the same on every rank; 'local': each counts on its own rank only; 'missing': nowhere; 'other'.
    """
    own = [found[rank][sample] for rank, mine in enumerate(owners) for sample in mine[number]]
    samples = [sample for mine in owners for sample in mine[number]]
    everywhere = [weights[sample] for weights in found for sample in samples]
    if not any(everywhere):
        return "missing"
    if sum(map(bool, everywhere)) == sum(map(bool, own)):
        return "local"
    return "shared" if all(weights[sample] == found[0][sample] for weights in found for sample in samples) else "other"
