"""Ranks and the process group: who this process is, and how the ranks of a run meet."""

from __future__ import annotations

import gc
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist

from ddp_workbook.distributed.quiet_gloo import silence_gloo
from ddp_workbook.distributed.rendezvous import ADDRESS, serve_store
from ddp_workbook.errors import InputError
from ddp_workbook.records.run import RunKind

LOOPBACK = {"linux": "lo", "darwin": "lo0"}  # Gloo asks for the interface by name; on Windows it cannot

DEFAULT_TIMEOUT = 600  # seconds
LOST_CONNECTION = (
    "gloo/transport", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed",
    "Timed out waiting", "remote process",
)  # fmt: skip


class LostConnection(RuntimeError):
    """Another rank cannot be reached any more; the message is one line."""


@dataclass(frozen=True)
class World:
    """Which of how many processes this one is. Without torchrun it is the only one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launched: bool = False
    """torchrun started this process, so there is a process group to join."""
    restarts: int = 0
    """How often torchrun has restarted the ranks after one of them died."""

    @property
    def is_main(self) -> bool:
        """True on rank 0, the only rank that prints and writes."""
        return self.rank == 0

    @property
    def kind(self) -> RunKind:
        """A run under torchrun is the distributed one, whatever its size."""
        return "distributed" if self.launched else "baseline"


def read_world() -> World:
    """This process's place, from the environment variables that torchrun sets. They are read nowhere else."""
    if "RANK" not in os.environ:
        return World()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    try:
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
        world = World(*(int(os.environ[name]) for name in names), launched=True, restarts=restarts)
    except (KeyError, ValueError) as error:
        raise InputError(f"{', '.join(names)} must all be whole numbers ({error}); start with torchrun") from None
    if not (0 <= world.rank < world.size and 0 <= world.local_rank < world.local_size <= world.size):
        given = ", ".join(f"{name}={os.environ[name]}" for name in names)
        raise InputError(f"{given} cannot be: ranks count from 0 to the size - 1; start with torchrun, or unset them")
    return world


def read_timeout() -> timedelta:
    """How long a rank waits for another before it gives up: DDP_TIMEOUT seconds, the same on every machine."""
    text = os.environ.get("DDP_TIMEOUT", str(DEFAULT_TIMEOUT))
    if not text.isascii() or not text.isdigit() or not 1 <= len(text) <= 5 or int(text) == 0:
        raise InputError(f"DDP_TIMEOUT must be whole seconds from 1 to 99999, not {text!r}")
    return timedelta(seconds=int(text))


def require_interface() -> None:
    """Raise InputError when GLOO_SOCKET_IFNAME names an interface that this machine lacks, or that has no address."""
    asked = os.environ.get("GLOO_SOCKET_IFNAME", "")
    there = [
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(address.family in (socket.AF_INET, socket.AF_INET6) for address in addresses)
    ]
    if sys.platform in LOOPBACK and asked and not set(asked.split(",")) <= set(there):
        raise InputError(
            f"GLOO_SOCKET_IFNAME={asked} is not a network interface of this machine, which has: {', '.join(there)}; "
            f"choose one of them, or unset GLOO_SOCKET_IFNAME"
        )


def bind_to_loopback() -> None:
    """Make Gloo use the loopback interface: no port open to the network, no lookup of this machine's name."""
    if sys.platform in LOOPBACK:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK[sys.platform])


def bind_to_network() -> None:
    """Make Gloo use the interface that leads to rank 0, at the address in MASTER_ADDR.

    By default it uses the address of this machine's own name, which many systems resolve to loopback, where no other
    machine can connect.
    """
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ["MASTER_ADDR"], 9))  # sends nothing: it only chooses a route
        own = probe.getsockname()[0]
        for name, addresses in psutil.net_if_addrs().items():
            if own in [address.address for address in addresses]:
                os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


@contextmanager
def process_group(world: World, backend: str, device: torch.device) -> Iterator[None]:
    """Join the process group for the block; on one machine nothing leaves the loopback interface.

    Raises LostConnection when a rank does not answer within read_timeout(), because it ended or the network failed.

    Nothing that holds the group (a DDP model, for example) may outlive the block: Gloo's threads are joined when the
    last reference goes. If that happens during the interpreter's own shutdown, a thread that still has a finished
    collective to release waits for the interpreter's lock, Python ends it with pthread_exit, and C++ aborts the process
    ("terminate called without an active exception"). DDP sits in reference cycles, hence gc.collect().
    """
    if not world.launched:
        yield
        return
    timeout = read_timeout()
    one_machine = world.size == world.local_size
    if one_machine:
        bind_to_loopback()
    else:
        _require_address()
        bind_to_network()
    if backend == "gloo":
        require_interface()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _report_lost_connection(world, timeout):
        store = _store_of_one_machine(world, timeout) if one_machine else {}
        silence_gloo()
        dist.init_process_group(backend, timeout=timeout, device_id=device if backend == "nccl" else None, **store)
        yield  # nothing waits for the others when this rank fails: that would hide its error
        gc.collect()
        dist.barrier()
    dist.destroy_process_group()


def _store_of_one_machine(world: World, timeout: timedelta) -> dict[str, object]:
    """The store where the ranks meet, where torch's own choice would not do.

    Where torchrun serves no store, rank 0 would open one on all interfaces. Where it does (--standalone), the store
    survives restarts and holds the addresses of dead ranks: a rank that reads one of them cannot connect. So each
    restart gets its own prefix. (With several machines this does not work: each counts its restarts alone.)
    """
    place = {"rank": world.rank, "world_size": world.size}
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        if not world.restarts:
            return {}
        store, _, _ = next(dist.rendezvous("env://"))
        return {"store": dist.PrefixStore(f"restart {world.restarts}", store), **place}
    port = _master_port()
    try:
        store = serve_store(port, timeout) if world.is_main else dist.TCPStore(ADDRESS, port, timeout=timeout)
    except OSError as error:
        raise InputError(f"MASTER_PORT {port} cannot be opened ({error.strerror}); choose another") from error
    return {"store": store, **place}


def _require_address() -> None:
    """Raise InputError when the variables that say where rank 0 is, on several machines, are missing or wrong."""
    if not os.environ.get("MASTER_ADDR"):
        raise InputError("MASTER_ADDR must be the address of rank 0's machine; start with torchrun")
    _master_port()


def _master_port() -> int:
    port = os.environ.get("MASTER_PORT", "")
    if not port.isascii() or not port.isdigit() or len(port) > 5 or not 0 < int(port) < 2**16:
        raise InputError(f"MASTER_PORT must be a port number, not {port!r}; start with torchrun")
    return int(port)


@contextmanager
def _report_lost_connection(world: World, timeout: timedelta) -> Iterator[None]:
    """Turn the errors of Gloo, NCCL and the stores about a lost rank into one line."""
    try:
        yield
    except RuntimeError as error:
        of_network = isinstance(error, dist.DistNetworkError | dist.DistStoreError)
        if not of_network and not any(sign in str(error) for sign in LOST_CONNECTION):
            raise
        raise LostConnection(
            f"rank {world.rank} of {world.size} lost connection to another rank: it failed (see its error above) or "
            f"did not respond for DDP_TIMEOUT={timeout.seconds} s. Fix the cause and restart"
        ) from None


def leave_group(together: bool) -> None:
    """Leave the process group after an error. `together`: all ranks leave, so they can wait for each other.

    Whatever holds a DDP model, such as the error's traceback, must be released first: see process_group.
    """
    gc.collect()
    if dist.is_initialized():
        if together:
            dist.barrier()
        dist.destroy_process_group()
