"""L01: give your tensor to the right neighbour, and return the left one's."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ddp_workbook.labs.checks.on_wire import GlooWire, simulate, stuck
from ddp_workbook.labs.lab import Lab, Part
from ddp_workbook.labs.team import Rank
from ddp_workbook.labs.verdict import Wrong
from ddp_workbook.labs.wire import Deadlock, Wire

SIZES = [2, 3, 4, 5]
SCHEDULES = 25


def simulated(rank: Rank) -> int:
    """On 2 to 5 simulated ranks, each under many orders of turns."""
    shift, reports, compared = rank.names["shift"], {}, 0
    for size in SIZES:
        for schedule in range(SCHEDULES):
            generator = torch.Generator().manual_seed(rank.seed + schedule)
            mine = [torch.randn(3, 2, generator=generator) for _ in range(size)]
            kept = [tensor.clone() for tensor in mine]
            try:
                results, meters = simulate(size, rank.seed + schedule, on_each(shift, mine))
            except Deadlock as report:
                reports[size] = report
                break
            for number, result in enumerate(results):
                _compare(number, result, mine, kept)
                compared += 1
            for number, meter in enumerate(meters):
                if meter.messages != 1:
                    raise Wrong(
                        "too-many-messages",
                        f"right, but rank {number} sent {meter.messages} messages with {size} ranks; one is enough",
                    )
    if reports:
        raise stuck(reports, SIZES)
    return compared


def on_each(shift: Callable, mine: list[torch.Tensor]) -> Callable[[Wire], object]:
    """shift() with each rank's own tensor."""
    return lambda wire: shift(mine[wire.rank], wire)


def _compare(rank: int, result: object, mine: list[torch.Tensor], kept: list[torch.Tensor]) -> None:
    size = len(mine)
    left, right = (rank - 1) % size, (rank + 1) % size
    if not isinstance(result, torch.Tensor):
        raise Wrong(
            "no-tensor", f"shift returned {type(result).__name__} on rank {rank}; return the tensor you received"
        )
    for number, (now, before) in enumerate(zip(mine, kept, strict=True)):
        if not torch.equal(now, before):
            raise Wrong(
                "changed-input", f"the tensor that rank {number} was given has changed; `mine` must stay as it is"
            )
    if torch.equal(result, kept[left]):
        if result.data_ptr() == mine[rank].data_ptr():
            raise Wrong("aliased", "the result shares its memory with the caller's tensor")
        return
    if torch.equal(result, kept[rank]):
        raise Wrong("own-tensor", f"rank {rank} of {size} returned its own tensor")
    if size > 2 and torch.equal(result, kept[right]):
        raise Wrong(
            "wrong-side",
            f"rank {rank} of {size} returned the tensor of rank {right}; its left neighbour is rank {left}. "
            f"(With 2 ranks both sides are the same.)",
        )
    for other in range(size):
        if torch.equal(result, kept[other]):
            raise Wrong(
                "passed-on",
                f"rank {rank} of {size} returned the tensor of rank {other}, not that of its left neighbour {left}: "
                f"did somebody pass on what it had just received?",
            )
    raise Wrong("other-values", f"rank {rank} of {size} returned values that no rank had")


def real(rank: Rank) -> int:
    """4 MiB between real processes."""
    tensors = [torch.randn(2**20, generator=torch.Generator().manual_seed(rank.seed + n)) for n in range(rank.size)]
    result = rank.names["shift"](tensors[rank.rank].clone(), GlooWire(rank))
    _compare(rank.rank, result, tensors, tensors)
    return 1


LAB = Lab(
    number=1,
    name="shift",
    title="Give to the right, take from the left",
    minutes=10,
    difficulty=1,
    defines=("shift",),
    parts=(Part(simulated), Part(real, 2), Part(real, 3)),
)
