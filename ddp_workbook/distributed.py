"""Ranks, the process group, and the few exact reductions that a run needs."""

from __future__ import annotations

import gc
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddp_workbook.communication import CommunicationMeter
from ddp_workbook.config import TrainConfig
from ddp_workbook.errors import InputError
from ddp_workbook.record import Communication

LOOPBACK = {"linux": "lo", "darwin": "lo0"}  # Gloo wants the interface's name; Windows has none that it takes


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


def bind_to_loopback() -> None:
    """Let Gloo use the loopback interface: no port open to the network, no lookup of this machine's name."""
    if sys.platform in LOOPBACK:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK[sys.platform])


@contextmanager
def process_group(world: World, backend: str, device: torch.device) -> Iterator[None]:
    """Join the ranks for the length of the block; on one machine nothing leaves the loopback interface.

    Leave nothing that holds the group (a DDP model, say) alive after the block: Gloo's threads are joined when the
    last reference goes. If that is during the interpreter's own shutdown, a thread that still has a finished
    collective to release wants the interpreter's lock, Python ends it with pthread_exit, and C++ aborts the process
    ("terminate called without an active exception"). DDP sits in reference cycles, hence the collection.
    """
    if not world.launched:
        yield
        return
    if world.size == world.local_size:
        bind_to_loopback()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = _store_of_this_start(world) if world.restarts and world.size == world.local_size else {}
    dist.init_process_group(backend, device_id=device if backend == "nccl" else None, **store)
    yield  # not in a try block: when a rank fails, waiting here for the others would hide its error
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def _store_of_this_start(world: World) -> dict[str, object]:
    """The store that torchrun serves, without what the ranks wrote there before they were restarted.

    torchrun --standalone keeps one store over all restarts, and in it the addresses of ranks that are dead: who reads
    one before the new rank has written its own cannot connect. (Machines count their restarts each for itself, so that
    several cannot part their starts in this way.)
    """
    store, rank, size = next(dist.rendezvous("env://"))
    return {"store": dist.PrefixStore(f"restart {world.restarts}", store), "rank": rank, "world_size": size}


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


def reduce_max(values: list[float], device: torch.device) -> list[float]:
    """The largest of each over all ranks, on every rank. Alone: the values themselves."""
    if not dist.is_initialized():
        return values
    joined = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(joined, dist.ReduceOp.MAX)
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


def lost_peer(error: BaseException) -> bool:
    """Whether this error says only that another rank has gone, which has told its own error."""
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


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
    waited, collective, size, count = (reduce_sum(torch.tensor(mine, dtype=torch.float64, device=device))).tolist()
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
