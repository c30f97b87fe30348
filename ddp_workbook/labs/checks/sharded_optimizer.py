"""L15: an optimizer whose state is split over the ranks, as in stage 1 of ZeRO (Rajbhandari et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Optimizer

from ddp_workbook.labs.checks.unsharded import Case, Unsharded, trained, values
from ddp_workbook.labs.lab import Lab, Part
from ddp_workbook.labs.ledger import Entry
from ddp_workbook.labs.team import Rank
from ddp_workbook.labs.verdict import Wrong

STEPS, BATCH, CLASSES = 5, 4, 3
REDUCTIONS = ("all_reduce", "reduce", "reduce_scatter")


class Net(nn.Module):
    """Large weights, one of which two layers share, in turns with small biases; then many small tensors.

    So ranks that get equally many tensors, in turns or in blocks, get very unequal numbers of bytes. The frozen layer
    is about as large as all others together.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        width = 11 + seed % 4
        self.in_features = 5 * width
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(5))
        self.layers[4].weight = self.layers[1].weight
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))
        self.last = nn.Linear(width, CLASSES)
        self.frozen = nn.Linear(self.in_features, width).requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits."""
        x = self.frozen(inputs)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(x).tanh())
        return self.last(x)


def _parameters(net: nn.Module) -> Iterable:
    return net.parameters()  # an iterator, which can be gone through once


def _two_groups(net: nn.Module) -> list[dict]:
    matrices, vectors = ([p for p in net.parameters() if (p.ndim > 1) == large] for large in (True, False))
    return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]


# SGD shows a constant factor of the gradient, which Adam hides
PLAIN = Case("SGD with momentum", SGD, {"lr": 0.1, "momentum": 0.9}, _parameters)
GROUPS = Case("AdamW with two groups", AdamW, {"lr": 0.01, "weight_decay": 0.2}, _two_groups, decay=0.7)


def trains(rank: Rank) -> int:
    """Two trainings, and one with fewer parameters than ranks."""
    compared = sum(_train(rank, Net(rank.seed), case) for case in (PLAIN, GROUPS))
    torch.manual_seed(rank.seed)
    few = nn.Linear(6, CLASSES, bias=rank.size > 2)
    words = f"AdamW with {len(list(few.parameters()))} parameter(s) on {rank.size} ranks"
    try:
        return compared + _train(rank, few, Case(words, AdamW, {"lr": 0.01}, _parameters))
    except Wrong:
        raise
    except Exception as error:
        raise Wrong(
            "fewer-parameters",
            f"{words}: {type(error).__name__} on rank {rank.rank}: {str(error)[:150]}. What does your code do on a "
            f"rank that owns nothing?",
        ) from None


def _train(rank: Rank, net: nn.Module, case: Case) -> int:
    """Compare the weights after each step with those of an optimizer without sharding; at the end, what it costs."""
    serial, watched = Unsharded(case, net), _watched(case.cls)
    rank.ledger.phase = case.words
    ours = rank.names["ShardedOptimizer"](case.arrange(net), watched, **case.options)
    _compare_groups(rank, ours, serial.optimizer)
    torch.manual_seed(rank.seed + 1 + rank.rank)
    for step in range(1, STEPS + 1):
        rank.ledger.phase = f"{case.words}, step {step}"
        _clear(rank, ours, net)
        serial.step(_average(rank, net))
        rank.ledger.take()
        ours.step()
        sent = rank.ledger.take()
        _compare_weights(rank, net, serial, watched.alive, sent)
        if case.decay:
            for group in [*ours.param_groups, *serial.optimizer.param_groups]:  # as schedulers do
                group["lr"] *= case.decay
                group["weight_decay"] /= case.decay
    rank.ledger.phase = f"{case.words}: the weights are right"
    _compare_state(rank, watched.alive, serial.optimizer)
    _compare_traffic(rank, sent, net)
    return STEPS * len(serial.new) + 2


def _watched(cls: type[Optimizer]) -> type[Optimizer]:
    """This class of optimizers, with a list of those that are alive: the answer may keep them anywhere."""

    class Watched(cls):
        alive: ClassVar[WeakSet] = WeakSet()

        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)
            self.alive.add(self)

    Watched.__name__ = cls.__name__
    return Watched


def _compare_groups(rank: Rank, ours: object, plain: Optimizer) -> None:
    """What code outside of an optimizer uses: schedulers, and whoever clips gradients."""
    groups = getattr(ours, "param_groups", None)
    expected = [len(trained(group["params"])) for group in plain.param_groups]
    if not isinstance(groups, list) or not all(isinstance(each, dict) and "params" in each for each in groups):
        raise Wrong("no-groups", f"{rank.ledger.phase}: param_groups must be a list of dicts, as in a plain optimizer")
    found = [len(trained(group["params"])) for group in groups]
    if found != expected:
        # such a norm is that of a part of the model: pytorch/torchtitan#596
        raise Wrong(
            "own-groups",
            f"{rank.ledger.phase}: the groups in param_groups of rank {rank.rank} have {found} trained parameters; in "
            f"a plain optimizer they have {expected}. Whoever clips by the norm of all gradients goes over them",
        )


def _clear(rank: Rank, ours: object, net: nn.Module) -> None:
    ours.zero_grad()
    kept = [name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()]
    if kept:
        raise Wrong(
            "gradients-kept",
            f"{rank.ledger.phase}: after zero_grad() rank {rank.rank} still has the old gradients of {len(kept)} "
            f"parameters, such as {kept[0]}, and backward() would add to them",
        )


def _average(rank: Rank, net: nn.Module) -> list[Tensor]:
    """A backward pass on data of each rank's own; returns the mean gradients, with the same bits on all ranks."""
    inputs, labels = torch.randn(BATCH, net.in_features), torch.randint(CLASSES, (BATCH,))
    cross_entropy(net(inputs), labels).backward()
    params = trained(net.parameters())
    flat = torch.cat([p.grad.flatten() for p in params])  # one tensor: to gather many takes long
    means = torch.stack(rank.gather(flat)).mean(0).split([p.numel() for p in params])
    for p, mean in zip(params, means, strict=True):
        p.grad = mean.view_as(p).clone()
    return [mean.view_as(p) for p, mean in zip(params, means, strict=True)]


def _compare_weights(
    rank: Rank, net: nn.Module, serial: Unsharded, alive: Iterable[Optimizer], sent: Sequence[Entry]
) -> None:
    """All bits on all ranks."""
    old, new = serial.old, serial.new
    flats, sizes = rank.gather(torch.cat(list(values(net).values()))), [value.numel() for value in new.values()]
    found = [dict(zip(new, flat.split(sizes), strict=True)) for flat in flats]
    wrong = [(number, name) for name in new for number in range(rank.size) if not found[number][name].equal(new[name])]
    if not wrong:
        return
    (number, name), words = wrong[0], rank.ledger.phase
    if all(found[each][one].equal(old[one]) for each, one in wrong):
        updated = [each for each in range(rank.size) if found[each][name].equal(new[name])]
        owners = [each for each, names in enumerate(rank.gather(_with_state(net, alive))) if name in names]
        if updated:
            raise Wrong("not-sent", f"{words}: {name} is new on rank {updated[0]}, and on rank {number} as before")
        if owners:
            raise Wrong(
                "wrong-source",
                f"{words}: rank {owners[0]} keeps the state of {name} and has updated it, but afterwards it is as "
                f"before on all ranks, also on that one. Whose values were sent?",
            )
        raise Wrong("nobody-updates", f"{words}: {name} is as before on all ranks, and no rank keeps state for it")
    if mistake := serial.explain(found):
        raise Wrong(mistake[0], f"{words}: {mistake[1]}")
    _refuse_reductions(sent, f"{words}: {name} is wrong")
    if not all(each[name].equal(found[0][name]) for each in found):
        raise Wrong("replicas-differ", f"{words}: {name} is not the same on all ranks")
    error = ((found[number][name] - new[name]).abs().max() / new[name].abs().max()).item()
    raise Wrong("other-values", f"{words}: {name} is off by {error:.2g} of its largest element")


def _with_state(net: nn.Module, alive: Iterable[Optimizer]) -> set[str]:
    """Names of the parameters for which this rank keeps state."""
    numbers = {id(p) for optimizer in alive for p, state in optimizer.state.items() if state}
    return {name for name, p in net.named_parameters() if id(p) in numbers}


def _refuse_reductions(sent: Sequence[Entry], words: str) -> None:
    found = [entry for entry in sent if entry.name in REDUCTIONS]
    if found:
        raise Wrong(
            "reduced-again",
            f"{words}, and step() calls {found[0].name} {len(found)} time(s), for {sum(e.bytes for e in found)} bytes. "
            f"The gradients are averaged already; only new values have to be sent",
        )


def _compare_state(rank: Rank, alive: Iterable[Optimizer], plain: Optimizer) -> None:
    """Bytes of the optimizers' state on each rank."""
    kept, sizes = rank.gather(sum(_state_sizes(alive))), _state_sizes([plain])
    total, most, words = sum(sizes), sum(sizes) / rank.size + max(sizes), rank.ledger.phase
    number = kept.index(max(kept))
    if min(kept) >= total:
        raise Wrong("not-sharded", f"{words}, but every rank keeps 100% of the state, {total} bytes")
    if sum(kept) != total:
        raise Wrong(
            "other-total",
            f"{words}, but the ranks keep {kept} bytes of state, which is {sum(kept)} in all; without sharding it has "
            f"{total}. Has each parameter one owner?",
        )
    if kept[number] > most:
        raise Wrong(
            "unbalanced",
            f"{words}, but rank {number} keeps {kept[number] / total:.0%} of the bytes of the state. The most is "
            f"{most / total:.0%}: 1/{rank.size} and that of the largest parameter. Do you split by tensors or bytes, "
            f"and does each parameter that you count have state? A frozen one has none",
        )


def _state_sizes(optimizers: Iterable[Optimizer]) -> list[int]:
    """Bytes for each parameter, without the counter of its steps."""
    return [
        sum(value.nbytes for key, value in state.items() if isinstance(value, Tensor) and key != "step")
        for optimizer in optimizers
        for state in optimizer.state.values()
    ]


def _compare_traffic(rank: Rank, sent: Sequence[Entry], net: nn.Module) -> None:
    """What the last step sent: a broadcast is in every rank's ledger, an all-gather is shared among them."""
    every, words = [entry for each in rank.gather(list(sent)) for entry in each], rank.ledger.phase
    sizes = [p.nbytes for p in trained(net.parameters())]
    copies = {"broadcast": rank.size, "send": rank.size - 1}
    total = round(sum(e.bytes / copies.get(e.name, 1) for e in every if e.name not in REDUCTIONS))
    if total >= sum(sizes):
        _refuse_reductions(sent, words)
    elif any(entry.name in REDUCTIONS for entry in sent):
        raise Wrong(
            "all-reduced",
            f"{words}, but step() adds up values from all ranks, although only the owner has the new ones: a ring "
            f"would send each of them twice. Which collective sends from one rank to the others?",
        )
    padding = rank.size * max(sizes) if any(entry.name == "all_gather" for entry in every) else 0
    if not sum(sizes) <= total <= sum(sizes) + padding:
        frozen = sum(p.nbytes for p in net.parameters()) - sum(sizes)
        raise Wrong(
            "other-bytes",
            f"{words}, but a step sends {total} bytes. The parameters that it changes have {sum(sizes)}, the frozen "
            f"ones {frozen}; each new value has to be sent once, by its owner",
        )


LAB = Lab(
    number=15,
    name="sharded_optimizer",
    title="Split the optimizer's state",
    minutes=45,
    difficulty=2,
    defines=("ShardedOptimizer",),
    parts=(Part(trains, 2), Part(trains, 3)),
)
