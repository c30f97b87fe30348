"""L02: sum a tensor over all ranks, in place, by passing chunks round a ring."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddp_workbook.labs.checks.on_wire import GlooWire, simulate, stuck
from ddp_workbook.labs.lab import Lab, Part
from ddp_workbook.labs.payload import describe, payload
from ddp_workbook.labs.team import Rank
from ddp_workbook.labs.verdict import Wrong
from ddp_workbook.labs.wire import Deadlock, Meter

SIZES = [2, 3, 4, 5]
ELEMENTS = (1000, 12, 7, 2, 1, 0)


def sums(rank: Rank) -> int:
    """Exact sums of payloads, for every number of ranks and elements; then what it cost."""
    function, reports, costs, compared = rank.names["ring_all_reduce"], {}, [], 0
    for size in SIZES:
        for elements in ELEMENTS:
            tensors = [payload(elements, each) for each in range(size)]
            complete = torch.zeros(size, elements, dtype=torch.bool)
            try:
                results, meters = _run(function, tensors, rank.seed, complete)
            except Deadlock as report:
                reports.setdefault((elements < size, size), report)
                continue
            _compare(tensors, results, meters, complete.any(dim=0))
            costs.append((tensors[0], meters))
            compared += size
    if reports and all(empty for empty, _ in reports):
        (_, size), report = next(iter(reports.items()))
        raise Wrong(
            "deadlock-when-empty", f"stuck when there are fewer elements than ranks, and chunks are empty: {report}"
        )
    if reports:
        raise stuck({size: report for (_, size), report in reports.items()}, SIZES)
    for x, meters in costs:
        _compare_cost(x, meters)
    return compared


def bits_and_layouts(rank: Rank) -> int:
    """Random numbers: close to the float64 sum, and the same bits on all ranks; a transposed view; integers."""
    function = rank.names["ring_all_reduce"]
    for size in SIZES:
        generator = torch.Generator().manual_seed(rank.seed + size)
        tensors = [torch.randn(1000, generator=generator) for _ in range(size)]
        expected = sum(tensor.double() for tensor in tensors)
        _run(function, tensors, rank.seed)
        largest = max((tensor.double() - expected).abs().max().item() for tensor in tensors)
        if largest > 1e-5:
            raise Wrong("inexact", f"{size} ranks: the sum of random numbers is off by up to {largest:.1g}")
        differing = sum(not torch.equal(tensor, tensors[0]) for tensor in tensors)
        if differing:
            share = (torch.stack(tensors) != tensors[0]).any(0).float().mean().item()
            raise Wrong(
                "other-bits",
                f"{size} ranks: {share:.0%} of the elements differ in bits between ranks: each rank added them in an "
                f"order of its own",
            )
        strided = [payload((4, 6), each).t() for each in range(size)]
        _run(function, strided, rank.seed)
        if any((tensor != sum(16**each for each in range(size))).any() for tensor in strided):
            raise Wrong(
                "strided", "right for contiguous tensors; a transposed one was not summed in place: did you sum a copy?"
            )
        integers = [payload(7, each, torch.int64) for each in range(size)]
        _run(function, integers, rank.seed)
        if any((tensor != sum(16**each for each in range(size))).any() for tensor in integers):
            raise Wrong("integers", "right for float32, wrong for int64")
    return 3 * sum(SIZES)


def real(rank: Rank) -> int:
    """Between real processes."""
    generator = torch.Generator().manual_seed(rank.seed)
    tensors = [torch.randn(100_003, generator=generator) for _ in range(rank.size)]
    expected = sum(tensor.double() for tensor in tensors)
    rank.names["ring_all_reduce"](tensors[rank.rank], GlooWire(rank))
    if (tensors[rank.rank].double() - expected).abs().max() > 1e-5:
        raise Wrong("wrong-when-real", "right when simulated, wrong between real processes")
    if len(set(rank.hashes([tensors[rank.rank]]))) > 1:
        raise Wrong("other-bits", "the ranks' results differ in bits")
    return 2


def _run(
    function: Callable, tensors: list[Tensor], seed: int, complete: Tensor | None = None
) -> tuple[list[object], list[Meter]]:
    """The answer on every rank. `complete` (ranks, elements) is set where an element was the full sum at some time."""
    full = sum(16**each for each in range(len(tensors)))

    def watch() -> None:
        if complete is not None:
            complete.logical_or_(torch.stack(tensors) == full)

    try:
        return simulate(len(tensors), seed, lambda wire: function(tensors[wire.rank], wire), watch)
    except Exception as error:
        if not isinstance(error, ValueError) or "process group" not in str(error):
            error.add_note(f"with {tensors[0].numel()} elements")
            raise
        raise Wrong("not-the-wire", "torch.distributed was called; the ranks of this lab have only the wire") from None


def _compare(tensors: list[Tensor], results: list[object], meters: list[Meter], complete: Tensor) -> None:
    """The exact sum of payloads on every rank, or how it went wrong. `complete`: elements that were right somewhere."""
    size, elements = len(tensors), tensors[0].numel()
    full, words = sum(16**each for each in range(size)), f"{elements} elements, {size} ranks"
    values = torch.stack(tensors) if elements else torch.zeros(size, 0)
    right = values == full
    if right.all():
        return
    if any(isinstance(result, Tensor) and (result == full).all() for result in results):
        raise Wrong("not-in-place", "the sum was returned, but x itself is unchanged; write into x")
    if not any(meter.messages for meter in meters):
        raise Wrong("no-messages", "no message went over the wire, and x is not the sum")
    if torch.equal(values * size, torch.full_like(values, full)):
        raise Wrong("mean", f"every element is 1/{size} of the sum; the lab asks for the sum")
    rank, element = (~right).nonzero()[0].tolist()
    whole = elements // size * size
    own = torch.tensor([float(16**each) for each in range(size)])[:, None]
    if right[:, :whole].all() and (values[:, whole:] == own).all():
        raise Wrong(
            "remainder", f"{words}: element {whole} is still the rank's own; the last {elements - whole} were left out"
        )
    found = describe(values[rank, element].item(), size)
    if complete.all():
        raise Wrong(
            "overwritten",
            f"{words}: every chunk was summed up on some rank. "
            f"Yet in the end element {element} on rank {rank} has: {found}. "
            f"Which chunk is complete on which rank after the first half, and which one does each pass on first?",
        )
    raise Wrong("miscounted", f"{words}: element {element} on rank {rank}: {found}")


def _compare_cost(x: Tensor, meters: list[Meter]) -> None:
    """2(N-1) messages of a chunk each from every rank, all at the same time."""
    size, elements = len(meters), x.numel()
    if elements < size:
        return
    most = max(meter.sent for meter in meters)
    allowed = 2 * (size - 1) * -(-elements // size) * x.element_size()
    if most > allowed:
        raise Wrong(
            "too-many-bytes",
            f"the sum is right, but with {size} ranks one of them sent {most / x.nbytes:.2f} times the tensor; a ring "
            f"sends {allowed / x.nbytes:.2f} times",
        )
    steps = max(meter.steps for meter in meters)
    if steps > 2 * (size - 1):
        raise Wrong(
            "too-many-steps",
            f"the sum is right, but the longest chain of messages has {steps} steps with {size} ranks, a ring's has "
            f"{2 * (size - 1)}: do all ranks send at the same time?",
        )


LAB = Lab(
    number=2,
    name="ring_all_reduce",
    title="Sum round a ring",
    minutes=40,
    difficulty=3,
    defines=("ring_all_reduce",),
    parts=(Part(sums), Part(bits_and_layouts), Part(real, 2), Part(real, 3)),
)
