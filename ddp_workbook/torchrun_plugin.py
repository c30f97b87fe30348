"""The plug-in that torchrun finds by its entry point (pyproject.toml) for --rdzv-backend=loopback.

A module that imports nothing at its top: torchrun loads it while its own rendezvous modules are half loaded.
"""

from __future__ import annotations

from collections.abc import Callable


def create_handler(params: object) -> object:
    """A handler for torchrun's parameters; raises ValueError for more than one machine."""
    from ddp_workbook.distributed.rendezvous import LoopbackRendezvous

    return LoopbackRendezvous.of(params)


def plug_in() -> Callable[[object], object]:
    """Called by torchrun; returns the function that creates handlers."""
    return create_handler
