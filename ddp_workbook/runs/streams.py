"""How a program and its surroundings part: stop signals, and standard streams that are closed or no longer written."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP


def open_standard_streams() -> None:
    """Connect standard streams that the caller has closed to the null device: the program then works in silence.

    Otherwise the next file that is opened would get their number, and whatever a library prints would go into it.
    Names that the streams' encoding lacks are printed as escapes.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number: this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 (until Python exits)
        with suppress(AttributeError):  # a notebook's streams have no encoding of their own
            getattr(sys, name).reconfigure(errors="backslashreplace")


class WatchedOutput:
    """A text stream that calls `on_loss` where the stream would raise OSError: closed pipe, full disk, lost terminal.

    What is printed after that goes to the null device.
    """

    def __init__(self, stream: TextIO, on_loss: Callable[[], object]) -> None:
        self.stream, self.on_loss = stream, on_loss

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except OSError:
            silence(self.stream)
            self.on_loss()


def silence(stream: TextIO) -> None:
    """Send what is still to come, and what is still in the stream's buffer when Python exits, to the null device."""
    with suppress(OSError):  # it has no file of its own
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
