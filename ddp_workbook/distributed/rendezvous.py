"""Rendezvous of the processes of one machine: a store that listens on the loopback interface only.

torchrun's own stores listen on every interface, --standalone or not, and accept every connection. This one is a
plug-in of torchrun, which finds it by its name where the workbook is installed:

    torchrun --rdzv-backend=loopback --nproc_per_node=2 distributed_train.py

Without installing the workbook, the same is

    python -m ddp_workbook.distributed.rendezvous --nproc_per_node=2 distributed_train.py
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous.api import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

NAME = "loopback"
ADDRESS = "127.0.0.1"
PATIENCE = timedelta(minutes=5)


def serve_store(port: int = 0, patience: timedelta = PATIENCE) -> TCPStore:
    """A store served by this process; port 0 chooses a free port. torch itself would listen on all interfaces."""
    listener = socket.create_server((ADDRESS, port))
    port = listener.getsockname()[1]
    return TCPStore(
        ADDRESS, port, is_master=True, wait_for_workers=False, timeout=patience, master_listen_fd=listener.detach()
    )


class LoopbackRendezvous(RendezvousHandler):
    """One machine, so no other agent to wait for. Every round gets a new store, a restart after a failure too."""

    @classmethod
    def of(cls, params: RendezvousParameters) -> LoopbackRendezvous:
        """The handler for torchrun's parameters. Raises ValueError for more than one machine."""
        if params.max_nodes != 1:
            raise ValueError("--rdzv-backend=loopback is for one machine; several need --rdzv-backend=c10d")
        return cls(params.run_id)

    def __init__(self, run_id: str) -> None:
        self.run_id, self.store = run_id, None

    def next_rendezvous(self) -> RendezvousInfo:
        self.store = serve_store()
        return RendezvousInfo(PrefixStore(self.run_id, self.store), 0, 1, RendezvousStoreInfo(ADDRESS, self.store.port))

    @property
    def use_agent_store(self) -> bool:
        """True: the ranks are clients of the store above. Otherwise rank 0 would open one, on all interfaces."""
        return True

    def get_backend(self) -> str:
        return NAME

    def get_run_id(self) -> str:
        return self.run_id

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None: ...

    def num_nodes_waiting(self) -> int:
        return 0

    def shutdown(self) -> bool:
        return True


def main(arguments: Sequence[str]) -> None:
    """torchrun with these arguments, on this machine only."""
    from torch.distributed import run

    with suppress(ValueError):  # registered by its entry point, where the workbook is installed
        rendezvous_handler_registry.register(NAME, LoopbackRendezvous.of)
    run.main([f"--rdzv-backend={NAME}", f"--rdzv-endpoint={ADDRESS}", *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
