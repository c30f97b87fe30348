"""L07: average gradients in buckets, beside the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn

from ddp_workbook.labs.checks.gradients import Numbered, read_numbers, train, weigh
from ddp_workbook.labs.lab import Lab, Part
from ddp_workbook.labs.ledger import Entry
from ddp_workbook.labs.team import Rank
from ddp_workbook.labs.verdict import Wrong

LARGE = 25 * 2**20
SHAPES, SHAPES_CAP = [(3, 4), (4,), (4, 4), (4,), (4, 2), (2,)], 72  # three buckets, the last one not full
LAYERS, LAYERS_CAP = (6, 8, 8, 5, 3), 260  # four buckets; in the last one both gradients of the first layer


def values(rank: Rank) -> int:
    """First the values, then what runs beside backward, then the collectives of a training with three caps."""
    make = rank.names["Buckets"]
    try:
        weigh(rank, lambda module: make(module, LARGE).finish)
    except Wrong as wrong:
        if wrong.diagnosis != "no-collectives":
            raise
        raise Wrong(
            "last-bucket-not-sent",
            f"{wrong.message}. This module has one small parameter, so that its only bucket is not full; who sends it?",
        ) from None
    module = Numbered(SHAPES, rank.rank)
    finish = make(module, SHAPES_CAP).finish
    read_numbers(rank, module, finish, mixed="shifted")
    _second_step(rank, module, finish)
    _overlap(rank)
    return 4 + sum(train(rank, _counted(rank, cap), (3, 5, 2, 4, 1)) for cap in (1, 700, LARGE))


def _second_step(rank: Rank, module: Numbered, finish: Callable[[], object]) -> None:
    rank.ledger.phase = "the first step is right; in the second"
    module.zero_grad()
    try:
        read_numbers(rank, module, finish, mixed="shifted", times=2)
    except Wrong as wrong:
        raise Wrong("not-reset", f"{rank.ledger.phase}, with doubled gradients: {wrong.message}") from None
    rank.ledger.phase = ""


def plan(module: nn.Module, cap: int) -> list[int]:
    """The bytes of each bucket, by the rule in the stub."""
    found: list[int] = []
    for parameter in reversed([each for each in module.parameters() if each.requires_grad]):
        if found and found[-1] + parameter.nbytes <= cap:
            found[-1] += parameter.nbytes
        else:
            found.append(parameter.nbytes)
    return found


def _layers(rank: Rank) -> nn.Sequential:
    torch.manual_seed(rank.seed)
    return nn.Sequential(*(each for widths in pairwise(LAYERS) for each in (nn.Linear(*widths), nn.Tanh())))


def _overlap(rank: Rank) -> None:
    """How many collectives had been called when each gradient came into being: an order of events, without a clock."""
    net, called = _layers(rank), {}
    for name, parameter in net.named_parameters():  # before the answer's own hooks
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: called.update({name: len(log.entries)}))
    buckets, expected, log = rank.names["Buckets"](net, LAYERS_CAP), len(plan(net, LAYERS_CAP)), rank.ledger
    log.take()
    net(torch.randn(4, LAYERS[0])).square().mean().backward()
    during, last = len(log.entries), list(called)[-1]
    buckets.finish()
    after = len(log.take()) - during
    if not during:
        raise Wrong(
            "no-overlap",
            f"the values are right; next step: with cap_bytes={LAYERS_CAP} this module has {expected} buckets, and the "
            f"collective of each should be called in backward(), when its last gradient comes. You called {after} "
            f"collective(s), all after backward()",
        )
    if not called[last]:
        raise Wrong(
            "forward-order",
            f"right, but the first of {expected} collectives was called when the last gradient, {last}, was there: "
            f"nothing ran beside backward(). In which order do gradients come, and which bucket is complete first?",
        )
    if called[last] < expected - 1:
        raise Wrong(
            "late",
            f"the values are right, but when the last gradient, {last}, came, {called[last]} collectives had been "
            f"called; {expected - 1} buckets were complete. Or do your buckets end at other gradients? A new one "
            f"begins before cap_bytes={LAYERS_CAP} would be exceeded",
        )


def _counted(rank: Rank, cap: int) -> Callable[[nn.Module], Callable[[], None]]:
    """attach() that compares the collectives of each step with the plan."""

    def attach(module: nn.Module) -> Callable[[], None]:
        buckets = rank.names["Buckets"](module, cap)
        rank.ledger.take()

        def finish() -> None:
            buckets.finish()
            _compare_plan(rank.ledger.take(), module, cap)

        return finish

    return attach


def _compare_plan(entries: Sequence[Entry], module: nn.Module, cap: int) -> None:
    expected, sizes = (
        plan(module, cap),
        [parameter.nbytes for parameter in module.parameters() if parameter.requires_grad],
    )
    words = f"with cap_bytes={cap} and {len(sizes)} parameters of {sum(sizes)} bytes in all"
    if len(entries) == len(sizes) != len(expected):
        raise Wrong("one-per-parameter", f"{words} a step has {len(entries)} collectives, expected: {len(expected)}")
    total = sum(entry.bytes for entry in entries)
    if total != sum(sizes):
        raise Wrong(
            "other-bytes",
            f"{words} the collectives of a step carry {total} bytes. Two layers of this module have the same weight, "
            f"one is frozen",
        )
    if len(entries) != len(expected):
        raise Wrong(
            "other-number",
            f"{words} a step has {len(entries)} collectives of {[entry.bytes for entry in entries]} bytes, expected: "
            f"{expected}",
        )
    sizes_sent = [entry.bytes for entry in entries]
    if sorted(sizes_sent) != sorted(expected) and max(sizes_sent) <= max(cap, *sizes):
        raise Wrong(
            "other-buckets", f"{words} the collectives of a step have {sizes_sent} bytes, the rule gives {expected}"
        )
    largest = max(sizes_sent)
    if largest > max(cap, *sizes):
        raise Wrong("too-large", f"{words} a collective has {largest} bytes; the largest parameter has {max(sizes)}")


def one_after_another(rank: Rank) -> int:
    """Rank 0 goes through its backward pass before the others begin theirs: only waiting inside it can hinder that."""
    net = _layers(rank)
    buckets = rank.names["Buckets"](net, LAYERS_CAP)
    rank.ledger.phase = (
        "here rank 0's backward() has to end before the other ranks begin theirs, so that nothing in it may wait for "
        "them, and it does not end"
    )
    if rank.rank:
        rank.gather("rank 0 has ended its backward pass")
    net(torch.randn(4, LAYERS[0])).square().mean().backward()
    if not rank.rank:
        rank.gather("rank 0 has ended its backward pass")
    buckets.finish()
    return 1


LAB = Lab(
    number=7,
    name="buckets",
    title="Average in buckets, beside the backward pass",
    minutes=60,
    difficulty=3,
    defines=("Buckets",),
    parts=(Part(values, 2), Part(values, 3), Part(one_after_another, 2, seconds=3, hang="waits-in-hook")),
)
