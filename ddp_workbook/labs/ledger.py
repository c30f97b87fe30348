"""The ledger: every collective of this rank, with its bytes, its phase and the line of the answer that called it.

It is a process group that writes down each call and hands it on to Gloo. So nothing goes past it: not a collective
that was imported under another name, nor those that DDP starts from C++.

It also compares the call with those of the other ranks, since collectives meet by number and not by name: Gloo mixes
two different ones up without a word, or ends the process.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import torch.distributed as dist
from torch import Tensor
from torch.distributed import get_process_group_ranks  # by name: an answer may replace torch.distributed's

from ddp_workbook.labs.verdict import Wrong

BACKEND = "ledger"
UNEQUAL = ("gather", "scatter", "all_to_all")  # ranks may put in different numbers of bytes
CALLS = {  # method of a process group: name in torch.distributed, place of its input; None: it sends nothing
    "allreduce": ("all_reduce", 0), "allreduce_coalesced": ("all_reduce", 0), "broadcast": ("broadcast", 0),
    "reduce": ("reduce", 0), "allgather": ("all_gather", 1), "allgather_coalesced": ("all_gather", 1),
    "_allgather_base": ("all_gather", 1), "allgather_into_tensor_coalesced": ("all_gather", 1),
    "all_gather_single": ("all_gather", 1), "all_gather_single_coalesced": ("all_gather", 1),
    "gather": ("gather", 1), "gather_into_tensor": ("gather", 1), "gather_single": ("gather", 1),
    "scatter": ("scatter", 1), "reduce_scatter": ("reduce_scatter", 1), "_reduce_scatter_base": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced": ("reduce_scatter", 1), "reduce_scatter_single": ("reduce_scatter", 1),
    "reduce_scatter_single_coalesced": ("reduce_scatter", 1), "alltoall": ("all_to_all", 1),
    "alltoall_base": ("all_to_all", 1), "all_to_all_single": ("all_to_all", 1), "send": ("send", 0),
    "barrier": ("barrier", None), "recv": ("recv", None), "recv_anysource": ("recv", None),
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One call."""

    name: str
    """As in torch.distributed."""
    bytes: int
    """Of the tensors that this rank puts in."""
    ranks: tuple[int, ...]
    """Of the group, as numbers of the default group."""
    dtype: str
    phase: str
    """What the judge was doing: see Ledger.phase."""
    line: int | None
    """Of the answer's file; None: called by something else, such as DDP's C++ code."""
    at: float
    """time.perf_counter()"""


@dataclass
class Ledger:
    """The calls of one rank, in order."""

    answer: str = ""
    """File name of the answer, as it stands in tracebacks."""
    phase: str = ""
    """Set by the judge before each part of its program, in words: reports on hangs and errors begin with them."""
    entries: list[Entry] = field(default_factory=list)

    def take(self) -> list[Entry]:
        """The entries since the last call of take()."""
        taken, self.entries = self.entries, []
        return taken

    def write(self, name: str, tensors: Sequence[Tensor], ranks: Sequence[int]) -> Entry:
        """Add an entry."""
        dtype = str(tensors[0].dtype).removeprefix("torch.") if tensors else ""
        size = sum(tensor.nbytes for tensor in tensors)
        entry = Entry(name, size, tuple(ranks), dtype, self.phase, self._line(), time.perf_counter())
        self.entries.append(entry)
        return entry

    def _line(self) -> int | None:
        frame = sys._getframe(2)
        while frame:
            if frame.f_code.co_filename == self.answer:
                return frame.f_lineno
            frame = frame.f_back
        return None


class LedgerGroup(dist.ProcessGroup):
    """Gloo, with a ledger in front of it."""

    def __init__(self, gloo: dist.ProcessGroup, store: dist.Store, rank: int, size: int, ledger: Ledger) -> None:
        super().__init__(rank, size)
        self.gloo, self.ledger = gloo, ledger
        self.store, self.collectives = dist.PrefixStore("ledger", store), 0

    def getBackendName(self) -> str:
        """As torch asks for it."""
        return BACKEND

    @property
    def group_name(self) -> str:
        """As a mesh of devices asks for it, which finds its groups by name; torch keeps none in groups of Python."""
        return dist.distributed_c10d._world.pg_names[self]

    def compare(self, entry: Entry) -> None:
        """Raise Wrong when another rank has called another collective under this number. Waits for nobody."""
        if entry.name in ("send", "recv"):
            return
        self.collectives += 1
        mine = entry.name if entry.name in UNEQUAL else f"{entry.name} of {entry.bytes} bytes"
        first = self.store.compare_set(str(self.collectives), "", mine).decode()
        if first != mine:
            phase = f"{entry.phase}: " if entry.phase else ""
            raise Wrong(
                "mismatch",
                f"{phase}collective no. {self.collectives} is {mine} on rank {entry.ranks[self.rank()]}"
                f"{f' (your line {entry.line})' if entry.line else ''}, and {first} on another one. All ranks have to "
                f"call the same collectives, for the same sizes, in the same order",
            )


def _recorded(call: str, name: str, place: int | None) -> Callable:
    def method(self: LedgerGroup, *arguments: object, **options: object) -> object:
        tensors = [] if place is None else _tensors(arguments[place])
        self.compare(self.ledger.write(name, tensors, get_process_group_ranks(self)))
        return getattr(self.gloo, call)(*arguments, **options)

    return method


def _tensors(value: object) -> list[Tensor]:
    """All tensors in nested lists."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for each in value for tensor in _tensors(each)]
    return []


for _call, (_name, _place) in CALLS.items():
    if hasattr(dist.ProcessGroup, _call):  # some exist only in later versions of torch, some only in earlier ones
        setattr(LedgerGroup, _call, _recorded(_call, _name, _place))


def join(ledger: Ledger, store: dist.Store, rank: int, size: int, timeout: float) -> None:
    """Join a group of `size` ranks as torch.distributed's default group, with the ledger in front. Seconds."""

    def create(store: dist.Store, rank: int, size: int, timeout: timedelta) -> LedgerGroup:
        return LedgerGroup(dist.ProcessGroupGloo(store, rank, size, timeout), store, rank, size, ledger)

    if BACKEND.upper() not in dist.Backend._plugins:
        dist.Backend.register_backend(BACKEND, create, devices=["cpu"])
    dist.init_process_group(BACKEND, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout))


def where(entry: Entry) -> str:
    """An entry in words: 'all_reduce (your line 7)'."""
    return f"{entry.name} (your line {entry.line})" if entry.line else entry.name
