"""What one optimizer step communicates: the collectives that were issued, and what this rank's connections sent."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ddp_workbook.records.rank_bytes import CollectiveName, StepTraffic

MEASURED_STEP = 3  # of a process; DDP sorts its buckets after the first one, and all ranks agree on that in the second
KINDS: dict[str, CollectiveName] = {  # part of the name of a c10d operator: name in torch.distributed
    "reduce_scatter": "reduce_scatter", "allreduce": "all_reduce", "allgather": "all_gather", "broadcast": "broadcast",
}  # fmt: skip


class CollectiveLog(TorchDispatchMode):
    """Adds up the bytes of the collectives in a block, by kind: whoever issues them (DDP, FSDP, us), on any backend.

    Bytes are those of the whole tensor: what each rank puts into an all-reduce, a broadcast or a reduce-scatter, and
    what it gets from an all-gather.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[CollectiveName] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Called by torch for each operator."""
        if func.namespace == "c10d":
            kind = next((KINDS[part] for part in KINDS if part in func.name()), None)
            if kind:
                self.bytes[kind] += max(map(_bytes_of, args))
        return func(*args, **(kwargs or {}))


def _bytes_of(value: object) -> int:
    """Of a tensor, or of all tensors in nested lists."""
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(map(_bytes_of, value)) if isinstance(value, list | tuple) else 0


class TrafficMeter:
    """Measures one optimizer step of a process, its MEASURED_STEP-th; the others run as they would without it."""

    def __init__(self) -> None:
        self.steps = 0
        self.measured: StepTraffic | None = None

    @contextmanager
    def step(self) -> Iterator[None]:
        """The block is an optimizer step."""
        self.steps += 1
        if self.steps != MEASURED_STEP or not dist.is_initialized():
            yield
            return
        before = sent_bytes()
        with CollectiveLog() as log:
            yield
        after = sent_bytes()
        sent = after - before if before is not None and dist.get_backend() == "gloo" else None
        self.measured = StepTraffic(collectives=dict(log.bytes), sent=sent)


def sent_bytes() -> int | None:
    """Bytes that this process has given to its TCP connections so far, by the kernel's count; None where it keeps none.

    Linux: fields of struct tcp_info in linux/tcp.h. What is sent again after a loss counts once.
    """
    if sys.platform != "linux":
        return None
    total = 0
    for entry in list(Path("/proc/self/fd").iterdir()):
        with suppress(OSError, struct.error):  # not connected, closed meanwhile, or an old kernel
            if str(entry.readlink()).startswith("socket:"):
                with socket.socket(fileno=os.dup(int(entry.name))) as connection:
                    if connection.family in (socket.AF_INET, socket.AF_INET6):
                        total += _given(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256))
    return total


def _given(info: bytes) -> int:
    """From a connection's tcp_info: bytes sent for the first time, and those that wait to be."""
    [waiting] = struct.unpack_from("=I", info, 144)
    sent, again = struct.unpack_from("=QQ", info, 200)
    return sent - again + waiting
