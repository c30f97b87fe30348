"""Ranks, the process group, and the few exact reductions that a run needs."""

from __future__ import annotations

import gc
import inspect
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddp_workbook.communication import CommunicationMeter
from ddp_workbook.config import TrainConfig
from ddp_workbook.errors import InputError
from ddp_workbook.record import Communication
from ddp_workbook.rendezvous import ADDRESS, serve_store

LOOPBACK = {"linux": "lo", "darwin": "lo0"}  # Gloo wants the interface's name; Windows has none that it takes

DEFAULT_TIMEOUT = 600  # seconds
LOST = (
    "gloo/transport", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed",
    "Timed out waiting", "remote process",
)  # fmt: skip


class LostContact(RuntimeError):
    """Another rank can no longer be reached; the message is one line."""


@dataclass(frozen=True)
class World:
    """Which process of how many this one is. Started without torchrun: the only one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launched: bool = False
    """torchrun started this process, so there is a process group to join."""
    restarts: int = 0
    """How often torchrun has started the ranks anew, after one of them had died."""

    @property
    def is_main(self) -> bool:
        """Rank 0 alone prints and writes."""
        return self.rank == 0


def read_world() -> World:
    """The variables that torchrun sets, read here and nowhere else."""
    if "RANK" not in os.environ:
        return World()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    try:
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
        return World(*(int(os.environ[name]) for name in names), launched=True, restarts=restarts)
    except (KeyError, ValueError) as error:
        raise InputError(f"{', '.join(names)} must all be whole numbers ({error}); start with torchrun") from None


def read_timeout() -> timedelta:
    """How long a rank waits for another before it gives up: DDP_TIMEOUT in seconds, on every machine the same."""
    text = os.environ.get("DDP_TIMEOUT", str(DEFAULT_TIMEOUT))
    if not text.isascii() or not text.isdigit() or not 1 <= len(text) <= 5 or int(text) == 0:
        raise InputError(f"DDP_TIMEOUT must be whole seconds from 1 to 99999, not {text!r}")
    return timedelta(seconds=int(text))


def bind_to_loopback() -> None:
    """Let Gloo use the loopback interface: no port open to the network, no lookup of this machine's name."""
    if sys.platform in LOOPBACK:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK[sys.platform])


def bind_to_network() -> None:
    """Let Gloo use the interface that leads to rank 0. By itself it takes the one of this machine's own name, which
    many systems resolve to loopback, where no other machine finds it.
    """
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ["MASTER_ADDR"], 9))  # sends nothing: it only chooses a route
        own = probe.getsockname()[0]
        for name, addresses in psutil.net_if_addrs().items():
            if own in [one.address for one in addresses]:
                os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


@contextmanager
def process_group(world: World, backend: str, device: torch.device) -> Iterator[None]:
    """Join the ranks for the length of the block; on one machine nothing leaves the loopback interface.

    Raises LostContact when a rank does not answer within read_timeout(), because it ended or the network is gone.

    Leave nothing that holds the group (a DDP model, say) alive after the block: Gloo's threads are joined when the
    last reference goes. If that is during the interpreter's own shutdown, a thread that still has a finished
    collective to release wants the interpreter's lock, Python ends it with pthread_exit, and C++ aborts the process
    ("terminate called without an active exception"). DDP sits in reference cycles, hence the collection.
    """
    if not world.launched:
        yield
        return
    timeout = read_timeout()
    one_machine = world.size == world.local_size
    if one_machine:
        bind_to_loopback()
    else:
        bind_to_network()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _tell_lost_contact(world, timeout):
        store = _store_of_one_machine(world, timeout) if one_machine else {}
        dist.init_process_group(backend, timeout=timeout, device_id=device if backend == "nccl" else None, **store)
        yield  # nothing waits for the others when this rank fails: that would hide its error
        gc.collect()
        dist.barrier()
    dist.destroy_process_group()


def _store_of_one_machine(world: World, timeout: timedelta) -> dict[str, object]:
    """Where the ranks meet, if it must be another place than torch's own choice.

    Where torchrun serves no store, rank 0 would open one on all interfaces. Where it does (--standalone), it keeps one
    store over all restarts, and in it the addresses of ranks that are dead: who reads one before the new rank has
    written its own cannot connect. (Machines count their restarts each for itself; several cannot be told apart so.)
    """
    place = {"rank": world.rank, "world_size": world.size}
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        if not world.restarts:
            return {}
        store, _, _ = next(dist.rendezvous("env://"))
        return {"store": dist.PrefixStore(f"restart {world.restarts}", store), **place}
    port = os.environ.get("MASTER_PORT", "")
    if not port.isdigit() or not 0 < int(port) < 2**16:
        raise InputError(f"MASTER_PORT must be a port's number, not {port!r}; start with torchrun")
    try:
        store = serve_store(int(port), timeout) if world.is_main else dist.TCPStore(ADDRESS, int(port), timeout=timeout)
    except OSError as error:
        raise InputError(f"MASTER_PORT {port} cannot be opened ({error.strerror}); choose another") from error
    return {"store": store, **place}


@contextmanager
def _tell_lost_contact(world: World, timeout: timedelta) -> Iterator[None]:
    """Turn what Gloo, NCCL and the stores say of a rank that is gone into one line."""
    try:
        yield
    except RuntimeError as error:
        of_network = isinstance(error, dist.DistNetworkError | dist.DistStoreError)
        if not of_network and not any(sign in str(error) for sign in LOST):
            raise
        raise LostContact(
            f"rank {world.rank} of {world.size} lost contact with another rank, which ended (its own error comes "
            f"first) or could not be reached for DDP_TIMEOUT={timeout.seconds} s; see to it and start again"
        ) from None


def reduce_sum(value: Tensor) -> Tensor:
    """Sum over all ranks, in place; every rank gets it. Alone: the value itself."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def gather_objects(value: object) -> list:
    """One value per rank, in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def reduce_list(values: list[float], operation: dist.ReduceOp, device: torch.device) -> list[float]:
    """The largest or the sum of each number over all ranks, on every rank. Alone: the values themselves."""
    if not dist.is_initialized():
        return values
    joined = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(joined, operation)
    return joined.tolist()


def from_main(function: Callable[[], Any]) -> Any:
    """What the function gives on rank 0, on every rank. An InputError there is raised on all: nobody waits for it."""
    if not dist.is_initialized():
        return function()
    box: list = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = function()
        except InputError as error:
            box[1] = str(error)
    dist.broadcast_object_list(box)
    if box[1] is not None:
        raise InputError(box[1])
    return box[0]


def leave_group(together: bool) -> None:
    """Leave the process group after an error. `together`: all ranks do, so that they can wait for each other.

    What holds a DDP model, such as the error's traceback, must be gone before: see process_group.
    """
    gc.collect()
    if dist.is_initialized():
        if together:
            dist.barrier()
        dist.destroy_process_group()


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DDP, whose parameter names and checkpoints know nothing of DDP."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def wrap_ddp(model: nn.Module, device: torch.device, config: TrainConfig) -> DistributedDataParallel:
    """DDP around the model: averages gradients during backward, in the way that the configuration asks for.

    Buffers are left alone here; average_buffers() joins them when they are needed.
    """
    known = inspect.signature(DistributedDataParallel).parameters
    no_broadcast = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
    ddp = DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        **no_broadcast,  # the parameter was renamed in torch 2.13
        gradient_as_bucket_view=True,  # after the all-reduce gradients stay in the buckets: no copy back
    )
    ddp.meter = CommunicationMeter(config, sum(p.numel() for p in model.parameters()), device)
    ddp.register_comm_hook(None, ddp.meter.hook)
    return ddp


@contextmanager
def gradient_sync(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Let DDP's backward average the gradients, or only add them up on this rank until it is wanted."""
    if not isinstance(model, DistributedDataParallel):
        yield
    elif wanted:
        yield
        model.meter.backward_ended()
    else:
        with model.no_sync():
            yield


def communication_since(model: nn.Module) -> Communication | None:
    """What the collectives took since this was last asked, as the mean over the ranks; None without DDP."""
    if not isinstance(model, DistributedDataParallel):
        return None
    traffic = model.meter.take()
    mine = [sum(traffic.waited), traffic.collective_seconds, traffic.gradient_bytes, len(traffic.collectives)]
    device = next(model.parameters()).device
    waited, collective, size, count = reduce_list(mine, dist.ReduceOp.SUM, device)
    ranks = dist.get_world_size()
    return Communication(
        waited_seconds=waited / ranks,
        collective_seconds=collective / ranks,
        gradient_bytes=round(size / ranks),
        collectives=round(count / ranks),
    )


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """Give every rank the mean of BatchNorm's running statistics.

    Each rank has seen only its own shard, and evaluation is split over ranks: they must all test one model, the one
    that is saved. DDP's own broadcast_buffers would take rank 0's statistics, at every step. The mean is what timm's
    `--dist-bn reduce` computes.
    """
    if not dist.is_initialized():
        return
    floats = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if not floats:
        return
    joined = torch.cat([buffer.flatten() for buffer in floats])
    dist.all_reduce(joined)
    joined /= dist.get_world_size()
    for buffer, mean in zip(floats, joined.split([b.numel() for b in floats]), strict=True):
        buffer.copy_(mean.view_as(buffer))
