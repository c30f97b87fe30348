"""The one kind of error that a reader causes and can mend."""

from __future__ import annotations

import sys
from typing import NoReturn


class InputError(Exception):
    """Bad input. The message is one line: what was wrong, and what would be right."""


def diverged(what: str) -> InputError:
    """The error for training that has left the realm of numbers; `what` says where that was seen."""
    causes = "too large a --lr, too short a --warmup, too coarse a --precision (fp32 is the finest)"
    return InputError(f"training diverged: {what}; usual causes: {causes}")


def exit_with(error: InputError, program: str) -> NoReturn:
    """End the process with code 2 and the error's line on stderr."""
    print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    sys.exit(2)
