"""How a run ends when it does not come to its end: asked to stop, refused, or left alone by another rank."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ddp_workbook.distributed import LostContact, World
from ddp_workbook.errors import InputError

SECONDS_FOR_RANK_0 = 5  # to refuse for all; it may have started later


class Stopped(Exception):
    """The run was asked to stop and has done so, after a whole step and with a checkpoint."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after {where}")
        self.number = number


class StopRequest:
    """Remembers SIGINT or SIGTERM until the training loop asks."""

    number: int = 0
    """The signal's, 0 while there is none."""

    def note(self, number: int, _: FrameType | None) -> None:
        self.number = self.number or number


@contextmanager
def stop_requests(world: World) -> Iterator[StopRequest]:
    """In the block, SIGINT (Ctrl-C, a notebook's stop button) and SIGTERM wait for the end of a step.

    Outside of torchrun a second Ctrl-C does not wait; torchrun itself ends ranks by force that take too long.
    """
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        request.note(number, frame)
        if not world.launched:
            signal.signal(number, before[number])

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def tell(error: BaseException, program: str, world: World) -> int:
    """Say in one line why the run ends before its end, and give the exit code.

    Rank 0 speaks for all. A refusal that is its own alone another rank tells later: torchrun has ended it by then
    wherever rank 0 refused as well.

    2 for bad input; 130 and 143 for SIGINT and SIGTERM, as a shell has them; 1 when another rank has gone, which has
    told its own error. What is none of these is raised again, and ends with its traceback.
    """
    if isinstance(error, InputError):
        line, code = f"{program}: error: {' '.join(str(error).split())}", 2
    elif isinstance(error, Stopped):
        line, code = str(error), 128 + error.number
    elif isinstance(error, KeyboardInterrupt):
        line, code = "interrupted", 128 + signal.SIGINT
    elif isinstance(error, LostContact):
        print(f"{program}: {error}", file=sys.stderr, flush=True)
        return 1
    else:
        raise error
    if code == 2 and not world.is_main:
        time.sleep(SECONDS_FOR_RANK_0)
    if code == 2 or world.is_main:
        print(line, file=sys.stderr, flush=True)
    return code
