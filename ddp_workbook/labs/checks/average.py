"""L06: after backward, the mean of the gradients over the ranks."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from ddp_workbook.labs.checks.gradients import Numbered, read_numbers, train, weigh
from ddp_workbook.labs.lab import Lab, Part
from ddp_workbook.labs.team import Rank
from ddp_workbook.labs.verdict import Wrong


def values(rank: Rank) -> int:
    """What each sample weighs, which gradient went where, then a training."""
    average = rank.names["average"]
    weigh(rank, lambda module: partial(average, module))
    module = Numbered([(2, 3)] * 8, rank.rank)
    read_numbers(rank, module, partial(average, module), mixed="order-differs")
    return 2 + train(rank, lambda module: partial(average, module))


class Branches(nn.Module):
    """One layer for all ranks, one for a single rank, one for none, a frozen one; all of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.common, self.never, self.sometimes, self.frozen = (nn.Linear(3, 3, bias=False) for _ in range(4))
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor, more: bool) -> Tensor:
        """With `more`, through the layer that is used sometimes."""
        x = self.frozen(self.common(x))
        return self.sometimes(x) if more else x


def unused(rank: Rank) -> int:
    """A parameter that only one rank has used, and two that nobody has."""
    for user in (0, rank.size - 1):
        torch.manual_seed(rank.seed + user)
        net = Branches()
        torch.manual_seed(rank.seed + 100 * user + rank.rank + 1)
        net(torch.randn(4, 3), more=rank.rank == user).square().mean().backward()
        before = rank.gather(_gradients(net))
        rank.ledger.phase = f"the layer `sometimes` was used by rank {user} only, its .grad is None elsewhere"
        rank.names["average"](net)
        _compare_unused(before, rank.gather(_gradients(net)), user)
    return 8


def _gradients(net: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if each.grad is None else each.grad.detach().clone() for name, each in net.named_parameters()}


def _compare_unused(before: list[dict], after: list[dict], user: int) -> None:
    size = len(after)
    for number, found in enumerate(after):
        for name in ("never.weight", "frozen.weight"):
            if found[name] is not None:
                raise Wrong(
                    "zeros-for-unused",
                    f"{name} was used by no rank, and now its .grad on rank {number} is a tensor, of zeros or not: an "
                    f"optimizer with weight decay or momentum would move it. It must stay None",
                )
        for name in ("common.weight", "sometimes.weight"):
            own = [each[name] for each in before if each[name] is not None]
            right, words = sum(own) / size, f"{name}, used by {'all ranks' if len(own) > 1 else f'rank {user} only'}"
            if found[name] is None:
                raise Wrong("left-none", f"{words}: its .grad is still None on rank {number}, whose optimizer skips it")
            if torch.allclose(found[name], right, rtol=1e-5, atol=1e-7):
                continue
            if torch.allclose(found[name], right * size / len(own), rtol=1e-5, atol=1e-7):
                raise Wrong(
                    "mean-of-users",
                    f"{words}: its gradient is {size / len(own):g} times too large. A rank that has not used it counts "
                    f"as a gradient of zeros; by how many did you divide?",
                )
            error = ((found[name] - right).abs().max() / right.abs().max()).item()
            raise Wrong("other-values", f"{words}: its gradient on rank {number} is off by {error:.0%} of the largest")


LAB = Lab(
    number=6,
    name="average",
    title="Average the gradients",
    minutes=15,
    difficulty=2,
    defines=("average",),
    parts=(
        Part(values, 2),
        Part(unused, 2, seconds=3, hang="skips-none"),
        Part(values, 3),
        Part(unused, 3, seconds=3, hang="skips-none"),
    ),
)
