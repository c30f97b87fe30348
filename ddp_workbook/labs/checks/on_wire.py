"""What the judges of the labs with a simulated wire share."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from ddp_workbook.labs.team import Rank
from ddp_workbook.labs.verdict import Wrong
from ddp_workbook.labs.wire import Deadlock, Meter, RankFailed, Simulation, Wire


def simulate(
    size: int, seed: int, function: Callable[[Wire], object], on_turn: Callable[[], None] = lambda: None
) -> tuple[list[object], list[Meter]]:
    """function(wire) on `size` simulated ranks: results and meters. Raises Deadlock, or the error of the answer."""
    simulation = Simulation(size, seed, on_turn)
    try:
        results = simulation.run(function)
    except RankFailed as failed:
        failed.error.add_note(f"on rank {failed.rank} of {size}")
        raise failed.error from None
    for message in simulation.messages:
        if not message.waited_for:
            raise Wrong(
                "not-waited",
                f"rank {message.source} of {size} began to send to rank {message.to} with isend() and returned without "
                f"wait(): the other one may not have the tensor yet, and its memory may change before",
            )
    return results, [wire.meter for wire in simulation.wires]


def stuck(reports: dict[int, Deadlock], sizes: list[int]) -> Wrong:
    """The verdict for an answer that stops for good at some of these numbers of ranks."""
    fine = [str(size) for size in sizes if size not in reports]
    size, report = next(iter(reports.items()))
    if not fine:
        return Wrong("deadlock", f"everybody waits: {report}")
    return Wrong("deadlock-at-some-sizes", f"right with {' and '.join(fine)} ranks, stuck with {size}: {report}")


class GlooWire:
    """The interface of wire.Wire over torch.distributed, so that the same answer runs on real processes."""

    def __init__(self, rank: Rank) -> None:
        self.rank, self.size = rank.rank, rank.size

    def send(self, tensor: torch.Tensor, to: int) -> None:
        """As Wire.send."""
        self.isend(tensor, to).wait()

    def isend(self, tensor: torch.Tensor, to: int) -> _Sending:
        """As Wire.isend. Shape and type travel ahead in a header."""
        header = torch.full((10,), -1)
        header[0], header[1] = TYPES.index(tensor.dtype), tensor.dim()
        header[2 : 2 + tensor.dim()] = torch.tensor(tensor.shape)
        parts = [header, tensor.detach().contiguous()][: 2 if tensor.numel() else 1]
        return _Sending(parts, [dist.isend(part, to) for part in parts])

    def recv(self, source: int) -> torch.Tensor:
        """As Wire.recv."""
        header = torch.empty(10, dtype=torch.int64)
        dist.recv(header, source)
        tensor = torch.empty(header[2 : 2 + int(header[1])].tolist(), dtype=TYPES[int(header[0])])
        if tensor.numel():
            dist.recv(tensor, source)
        return tensor


TYPES = [torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool, torch.bfloat16]


class _Sending:
    """Keeps the tensors until they are sent."""

    def __init__(self, parts: list[torch.Tensor], works: list) -> None:
        self.parts, self.works = parts, works

    def wait(self) -> None:
        """As Sending.wait."""
        for work in self.works:
            work.wait()
