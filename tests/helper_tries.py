"""How often a fault is tried: once in `make test`, many times in `make test-faults`; FAULT_TRIES sets a number."""

import os

IN_FULL = os.environ.get("FAULTS") == "full"


def tries(in_full: int) -> int:
    """The number of tries of a fault that has `in_full` of them in `make test-faults`."""
    return int(os.environ.get("FAULT_TRIES", in_full if IN_FULL else 1))
