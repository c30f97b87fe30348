"""torchrun's agent and its ranks: none of them outlives its parent.

A torchrun that somebody starts by hand is not concerned: under nohup, for example, it outlives its shell. Its ranks end
with it. The one that launch.py starts, which is this module as a program, ends with the notebook's kernel.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from ddp_workbook.distributed import rendezvous
from ddp_workbook.distributed.parent import end_with_parent
from ddp_workbook.distributed.process_group import LostConnection, World
from ddp_workbook.distributed.processes import silent_death


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
    """torchrun for launch.py, which reports its failures; the arguments are its parent and those of torchrun."""
    parent, *arguments = sys.argv[1:]
    end_with_parent(int(parent))
    try:
        rendezvous.main(arguments)
    except SignalException as stop:
        sys.exit(128 + stop.sigval)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode < 0:  # ended by a signal, so it could not leave a message itself
            message = silent_death(rank, failure.exitcode)
            Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps({"message": message}), encoding="utf-8")
        sys.exit(1)


if __name__ == "__main__":
    main()
