"""L05: give every rank the weights and buffers of one rank."""

from __future__ import annotations

import torch
from torch import nn

from ddp_workbook.labs.lab import Lab, Part
from ddp_workbook.labs.team import Rank
from ddp_workbook.labs.verdict import Wrong


class Net(nn.Module):
    """One of each kind: frozen, BatchNorm's buffers (one of them a whole number), tied, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.frozen = nn.Linear(7, 7).requires_grad_(False)
        self.norm = nn.BatchNorm1d(7)
        self.last = nn.Linear(7, 5, bias=False)
        self.tied = nn.Linear(7, 5, bias=False)
        self.tied.weight = self.last.weight
        self.turned = nn.Parameter(torch.randn(4, 3).t())
        self.register_buffer("scratch", torch.zeros(2), persistent=False)  # not in state_dict()


def alike(rank: Rank) -> int:
    """From the first rank, then from the last one."""
    for source in (0, rank.size - 1):
        _alike_from(source, rank)
    return 2


def _alike_from(source: int, rank: Rank) -> None:
    torch.manual_seed(rank.seed + 100 * source + rank.rank)
    net = Net()
    for buffer in net.buffers():
        buffer.copy_(torch.randint(1, 100, buffer.shape) + rank.rank)
    before = {name: tensor.detach().clone() for name, tensor in _named(net).items()}
    originals = rank.gather({name: tensor.tolist() for name, tensor in before.items()})[source]
    objects = {name: id(tensor) for name, tensor in _named(net).items()}
    rank.names["start_alike"](net, source)
    words = f"after start_alike(module, source={source}) on rank {rank.rank}"
    if {name: id(tensor) for name, tensor in _named(net).items()} != objects:
        raise Wrong(
            "replaced", f"{words}: tensors were replaced by new ones; an optimizer would go on with the old ones"
        )
    now = _named(net)
    wrong = [name for name in now if now[name].tolist() != originals[name]]
    unchanged = [name for name in wrong if torch.equal(now[name], before[name])]
    if unchanged and len(unchanged) == len(now) - _same_before(before, originals):
        raise Wrong("unchanged", f"{words}: every tensor is still this rank's own")
    kinds = {"buffer": dict(net.named_buffers()), "frozen parameter": _frozen(net)}
    for kind, members in kinds.items():
        if wrong and all(name in members for name in wrong):
            raise Wrong(
                f"forgot-{kind.split()[0]}",
                f"{words}: the {kind} {wrong[0]} is still this rank's own; the rest is right",
            )
    if wrong and unchanged == wrong:
        raise Wrong("incomplete", f"{words}: {wrong[0]} is still this rank's own")
    if wrong:
        same = all(
            len(set(map(str, each))) == 1 for each in zip(*rank.gather([now[n].tolist() for n in wrong]), strict=True)
        )
        if same:
            raise Wrong("nobodys", f"{wrong[0]} is alike on all ranks, but it is not what rank {source} had")
        raise Wrong("other-values", f"{words}: {wrong[0]} is neither rank {source}'s nor its own")


def _named(net: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}


def _frozen(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in net.named_parameters() if not tensor.requires_grad}


def _same_before(before: dict, originals: dict) -> int:
    return sum(tensor.tolist() == originals[name] for name, tensor in before.items())


LAB = Lab(
    number=5,
    name="start_alike",
    title="Start from the same weights",
    minutes=10,
    difficulty=1,
    defines=("start_alike",),
    parts=(Part(alike, 2), Part(alike, 3)),
)
