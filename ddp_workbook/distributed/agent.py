"""torchrun's agent and its ranks: none of them outlives its parent.

A torchrun that somebody starts by hand is not concerned: under nohup, for example, it outlives its shell. Its ranks end
with it. The one that launch.py starts, which is this module as a program, ends with the notebook's kernel.
"""

from __future__ import annotations

import os
import socket
import sys

from ddp_workbook.distributed import rendezvous
from ddp_workbook.distributed.parent import end_with_parent
from ddp_workbook.distributed.process_group import LostConnection, World


def end_with_torchrun(world: World) -> None:
    """From now on this rank ends when torchrun is gone, however that ended. Ranks started by hand have no torchrun.

    Raises LostConnection when torchrun is gone already: where it serves the store, nobody answers there.
    """
    if not world.launched or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    end_with_parent(os.getppid())
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        try:
            socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=5).close()
        except ConnectionRefusedError:
            raise LostConnection(f"rank {world.rank} of {world.size} ends, because torchrun has ended") from None
        except (KeyError, ValueError, OSError, OverflowError):
            pass  # process_group() will say what is wrong


def main() -> None:
    """torchrun for launch.py: the arguments are the process that it must not outlive, and torchrun's own."""
    parent, *arguments = sys.argv[1:]
    end_with_parent(int(parent))
    rendezvous.main(arguments)


if __name__ == "__main__":
    main()
