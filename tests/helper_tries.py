"""How often something is tried: once in `make test`, more often in `make test-faults` and `make test-labs`."""

import os

IN_FULL = os.environ.get("FAULTS") == "full"
LAB_TRIES = int(os.environ.get("LAB_TRIES", 0))  # of every answer to every lab; 0: the short form


def tries(in_full: int) -> int:
    """The number of tries of a fault that has `in_full` of them in `make test-faults`; FAULT_TRIES sets another one."""
    return int(os.environ.get("FAULT_TRIES", in_full if IN_FULL else 1))
