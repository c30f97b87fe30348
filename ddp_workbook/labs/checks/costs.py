"""L03: a sum by a parameter server and by a tree, and what these and a ring cost, in exact numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ddp_workbook.labs.checks.on_wire import GlooWire, simulate, stuck
from ddp_workbook.labs.lab import Lab, Part
from ddp_workbook.labs.payload import describe, payload
from ddp_workbook.labs.team import Rank
from ddp_workbook.labs.verdict import Wrong
from ddp_workbook.labs.wire import Deadlock, Meter

SIZES = [2, 3, 4, 5, 8]
COLUMNS = (1, 3, 1000)  # elements per rank, so that a ring's chunks are equal
FIELDS = ("sent", "received", "messages", "steps")
NETWORKS = ((50e-6, 1e-9), (2e-6, 4e-11))  # seconds per message and per byte: 1 GB/s through TCP, 25 GB/s without


def counts(rank: Rank) -> int:
    """The sums, then what the meter counted against the model, then cost() against the meter, then the crossover."""
    metered = {}
    for kind in ("server", "tree"):
        for size, columns, meters in _sums(kind, rank):
            (_compare_server if kind == "server" else _compare_tree)(meters, 8 * size * columns)
            metered[kind, size, columns] = _most(meters)
    for size in SIZES:
        for columns in COLUMNS:
            tensors = [payload((size, columns), each, torch.float64) for each in range(size)]
            _, meters = simulate(size, rank.seed, _on_each(rank.names["ring_all_reduce"], tensors))
            metered["ring", size, columns] = _most(meters)
    for (kind, size, columns), most in metered.items():
        _compare_cost(rank.names["cost"], kind, size, 8 * size * columns, most)
    return len(metered) + _crossover(rank.names["crossover"])


def _on_each(function: Callable, tensors: Sequence[Tensor]) -> Callable:
    return lambda wire: function(tensors[wire.rank], wire)


def _most(meters: Sequence[Meter]) -> tuple[int, ...]:
    return tuple(max(getattr(meter, field) for meter in meters) for field in FIELDS)


def _sums(kind: str, rank: Rank) -> list[tuple[int, int, list[Meter]]]:
    """The meters for each number of ranks and of elements, if all sums are right."""
    found, wrong, reports = [], {}, {}
    for size in SIZES:
        for columns in COLUMNS:
            tensors = [payload((size, columns), each, torch.float64) for each in range(size)]
            try:
                results, meters = simulate(size, rank.seed + columns, _on_each(rank.names[kind], tensors))
                _compare_sums(tensors, results, meters, f"{kind} with {size} ranks")
            except Deadlock as report:
                reports.setdefault(size, report)
            except Wrong as error:
                wrong.setdefault(size, error)
            except ValueError as error:  # of the wire, or of torch.distributed
                if "process group" in str(error):
                    raise Wrong("not-the-wire", f"{kind} called torch.distributed; there is only the wire") from None
                wrong.setdefault(size, Wrong("error", f"{kind} with {size} ranks: {error}"))
            else:
                found.append((size, columns, meters))
    failed = {**wrong, **{size: stuck({size: report}, []) for size, report in reports.items()}}
    if failed and set(failed) <= {3, 5}:
        size, error = next(iter(failed.items()))
        raise Wrong("powers-of-two", f"{kind}: right with 2, 4 and 8 ranks; with {size} ranks: {error}")
    if wrong:
        raise next(iter(wrong.values()))
    if reports:
        raise stuck(reports, SIZES)
    return found


def _compare_sums(tensors: list[Tensor], results: list[object], meters: list[Meter], words: str) -> None:
    size, full = len(tensors), sum(16**each for each in range(len(tensors)))
    right = [bool((tensor == full).all()) for tensor in tensors]
    if all(right):
        return
    if all(isinstance(result, Tensor) and (result == full).all() for result in results):
        raise Wrong("not-in-place", f"{words}: the sum was returned, but x is unchanged; write into x")
    if not any(meter.messages for meter in meters):
        raise Wrong("no-messages", f"{words}: no message went over the wire, and x is not the sum")
    if not right[0] and all(right[1:]):
        raise Wrong("root-left-out", f"{words}: all other ranks have the sum, rank 0's own x is not the sum")
    if right[0] and not any(right[1:]):
        raise Wrong("only-rank-0", f"{words}: rank 0 has the sum, the others have not")
    number = right.index(False)
    value = tensors[number][(tensors[number] != full)][0].item()
    raise Wrong("miscounted", f"{words}: on rank {number} a sum has {describe(value, size)}")


def _compare_server(meters: list[Meter], nbytes: int) -> None:
    size = len(meters)
    for number, meter in enumerate(meters):
        others = 1 if number else size - 1
        if (meter.sent, meter.received, meter.messages) != (others * nbytes, others * nbytes, others):
            raise Wrong(
                "not-a-server",
                f"server with {size} ranks: the sum is right, but rank {number} sent {meter.sent / nbytes:g} times the "
                f"tensor in {meter.messages} messages and received {meter.received / nbytes:g} times; a server "
                f"exchanges one tensor each way with every other rank, and these with nobody else",
            )


def _compare_tree(meters: list[Meter], nbytes: int) -> None:
    size = len(meters)
    depth, steps = math.ceil(math.log2(size)), max(meter.steps for meter in meters)
    busiest = max(range(size), key=lambda number: meters[number].messages)
    if meters[busiest].messages > depth:
        raise Wrong(
            "root-in-sequence",
            f"tree with {size} ranks: the sum is right, but rank {busiest} alone sends {meters[busiest].messages} "
            f"messages one after another; in a tree of depth {depth} nobody sends more than {depth}",
        )
    total = sum(meter.sent for meter in meters)
    if total != 2 * (size - 1) * nbytes:
        raise Wrong(
            "not-a-tree",
            f"tree with {size} ranks: the sum is right, but {total / nbytes:g} tensors were sent in all; to rank 0 "
            f"and back it takes {2 * (size - 1)}",
        )
    if steps > 2 * depth:
        raise Wrong(
            "too-many-steps",
            f"tree with {size} ranks: the sum is right, but the longest chain of messages has {steps} steps, "
            f"{2 * depth} are enough. Which of its partners should a rank serve first?",
        )


def _compare_cost(cost: Callable, kind: str, size: int, nbytes: int, most: tuple[int, ...]) -> None:
    found, call = cost(kind, size, nbytes), f"cost({kind!r}, {size}, {nbytes})"
    if not isinstance(found, tuple | list) or [isinstance(each, int | float) for each in found] != [True] * 4:
        raise Wrong("no-cost", f"{call} returned {str(found)[:80]}; it should be four numbers: {', '.join(FIELDS)}")
    if tuple(found) == most:
        return
    field = next(number for number in range(4) if found[number] != most[number])
    words = f"{call} says {FIELDS[field]} {found[field]}, the meter of the busiest rank {most[field]}"
    if field == 0 and kind == "ring" and found[0] == 2 * (size - 1) * nbytes:
        raise Wrong("ring-as-server", f"{words}. Yours is what a server sends and receives together: what is a chunk?")
    if field == 0 and kind == "server" and found[0] == nbytes:
        raise Wrong("per-client", f"{words}: which rank is the busiest one, and with how many does it talk?")
    if field == 0 and kind == "tree" and found[0] == math.floor(math.log2(size)) * nbytes:
        raise Wrong("rounded-down", f"{words}: {size} is not a power of two; how many rounds does the last rank need?")
    if FIELDS[field] == "received" and found[1] == 0:
        raise Wrong("received-forgotten", f"{words}: what is received takes time on a link as well")
    if FIELDS[field] == "steps":
        words = f"{call} says steps {found[3]}, the longest chain of messages has {most[3]}"
    raise Wrong(f"other-{FIELDS[field]}", words)


def _crossover(crossover: Callable) -> int:
    """Within 5 % of the size at which the two lines meet."""
    for size in (2, 3, 4, 5, 8, 64):
        for alpha, beta in NETWORKS:
            depth, ring = math.ceil(math.log2(size)), size - 1
            expected = alpha * (ring - depth) / (beta * (depth - ring / size))
            found, call = crossover(size, alpha, beta), f"crossover({size}, {alpha:g}, {beta:g})"
            if not isinstance(found, int | float) or not math.isfinite(found):
                raise Wrong("no-crossover", f"{call} returned {str(found)[:80]}; it should be a number of bytes")
            if abs(found - expected) > 0.05 * expected + 1:
                tree, other = 2 * depth * (alpha + beta * found), 2 * ring * (alpha + beta * found / size)
                raise Wrong(
                    "crossover",
                    f"{call} says {found:.6g} bytes: there a tree takes {tree * 1e6:.6g} µs and a ring "
                    f"{other * 1e6:.6g} µs. They should be equal"
                    + ("" if expected else ", or 0 bytes where a ring is never slower"),
                )
    return 6 * len(NETWORKS)


def real(rank: Rank) -> int:
    """Between real processes."""
    generator = torch.Generator().manual_seed(rank.seed)
    tensors = [torch.randn(1003, generator=generator) for _ in range(rank.size)]
    expected = sum(tensor.double() for tensor in tensors)
    for kind in ("server", "tree"):
        x = tensors[rank.rank].clone()
        rank.names[kind](x, GlooWire(rank))
        if max(rank.gather((x.double() - expected).abs().max().item())) > 1e-5:
            raise Wrong("wrong-when-real", f"{kind}: right when simulated, wrong between real processes")
        if len(set(rank.hashes([x]))) > 1:
            raise Wrong("other-bits", f"{kind}: the ranks' results differ in bits")
    return 4


LAB = Lab(
    number=3,
    name="costs",
    title="A server, a tree, a ring: count before you measure",
    minutes=40,
    difficulty=2,
    defines=("server", "tree", "cost", "crossover"),
    parts=(Part(counts), Part(real, 2), Part(real, 3)),
    uses=("ring_all_reduce",),
)
