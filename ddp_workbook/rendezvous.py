"""Where the processes of one machine meet: a store that listens on the loopback interface and nowhere else.

torchrun's own stores listen on every interface, --standalone or not, and nothing asks who connects. This one is a
plug-in of torchrun, known to it by name where the workbook is installed:

    torchrun --rdzv-backend=loopback --nproc_per_node=2 distributed_train.py
    python -m ddp_workbook.rendezvous --nproc_per_node=2 distributed_train.py      # the same, installed or not
"""

from __future__ import annotations

import socket
import sys
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous.api import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from ddp_workbook.torchrun_plugin import create_handler

NAME = "loopback"
ADDRESS = "127.0.0.1"
PATIENCE = timedelta(minutes=5)


def serve_store(port: int = 0, patience: timedelta = PATIENCE) -> TCPStore:
    """A store of which this process is the server; port 0 takes a free one. torch itself would bind all interfaces."""
    listener = socket.create_server((ADDRESS, port))
    port = listener.getsockname()[1]
    return TCPStore(
        ADDRESS, port, is_master=True, wait_for_workers=False, timeout=patience, master_listen_fd=listener.detach()
    )


class LoopbackRendezvous(RendezvousHandler):
    """One machine, so nobody to wait for; every round, a restart after a failure too, gets a store of its own."""

    @classmethod
    def of(cls, params: RendezvousParameters) -> LoopbackRendezvous:
        """For torchrun's parameters. Raises ValueError for more than one machine."""
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
        """The ranks are clients of the store above; otherwise rank 0 would open one, on all interfaces."""
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


def main() -> None:
    """torchrun on this machine alone."""
    from torch.distributed import run

    rendezvous_handler_registry.register(NAME, create_handler)
    run.main([f"--rdzv-backend={NAME}", f"--rdzv-endpoint={ADDRESS}", *sys.argv[1:]])


if __name__ == "__main__":
    main()
