"""Ctrl-C, SIGTERM and SIGHUP end a command of the course alike: in one line, with the exit code of the signal."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ddp_workbook.runs.streams import STOP_SIGNALS


class Interrupted(KeyboardInterrupt):
    """A stop signal came. The message, where there is one, says what was stopped and how to resume it."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number


@contextmanager
def stop_signals_raise() -> Iterator[None]:
    """In the block, a stop signal raises Interrupted, as Ctrl-C raises KeyboardInterrupt: what is open is closed.

    A signal that is ignored stays so: nohup starts a program in this way.
    """

    def stop(number: int, _: FrameType | None) -> None:
        raise Interrupted(number)

    before = after = stop_handlers()
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, stop)
        yield
    except Interrupted:
        after = dict.fromkeys(before, signal.SIG_IGN)  # the program ends already
        raise
    finally:
        restore(after)


def stop_handlers() -> dict[int, object]:
    """The present handler of each stop signal."""
    return {number: signal.getsignal(number) for number in STOP_SIGNALS}


def restore(handlers: dict[int, object]) -> None:
    """Make these the handlers again."""
    for number, handler in handlers.items():
        signal.signal(number, handler)
