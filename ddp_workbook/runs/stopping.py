"""Early exits: stop signals, lost output, divergence, invalid input, lost peers, and their exit codes."""

from __future__ import annotations

import math
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from types import FrameType

import torch

from ddp_workbook.distributed.collectives import dist_max
from ddp_workbook.distributed.process_group import LostConnection, World
from ddp_workbook.errors import InputError, diverged, error_line
from ddp_workbook.runs.streams import STOP_SIGNALS, WatchedOutput
from ddp_workbook.training.state import TrainingState

SECONDS_BETWEEN_CHECKS = 1.0
SECONDS_FOR_FIRST_RANK = 5  # to report for all ranks of its machine; it may have started later
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "could not create a memory")
"""In the messages of torch's allocators, and of oneDNN."""
LOST_OUTPUT = 13  # the number of SIGPIPE, where there is one: by default it ends a program whose output nobody reads


class Stopped(Exception):
    """The run was asked to stop, and did so after a complete step."""

    def __init__(self, number: int, where: str) -> None:
        lost = "lost output (stdout is a closed pipe or a full device)"
        cause = lost if number == LOST_OUTPUT else signal.Signals(number).name
        super().__init__(f"stopped by {cause} after {where}")
        self.number = number


class StopRequest:
    """Remembers a stop signal until the training loop checks for it."""

    number: int = 0
    """Number of the signal; 0: none came."""


@contextmanager
def stop_signals(world: World) -> Iterator[StopRequest]:
    """In the block, SIGINT (Ctrl-C, a notebook's stop button), SIGTERM and SIGHUP (a terminal that is closed) wait for
    the end of a step. So does output that can no longer be written: it counts as one of them.

    A signal that was ignored before stays ignored: nohup does this with SIGHUP. Without torchrun a second Ctrl-C does
    not wait; torchrun itself kills ranks that take too long.
    """
    request = StopRequest()

    def note(number: int, _: FrameType | None = None) -> None:
        request.number = request.number or number
        if number == signal.SIGINT and not world.launched:
            signal.signal(number, before[number])

    before = {one: signal.signal(one, note) for one in STOP_SIGNALS if signal.getsignal(one) is not signal.SIG_IGN}
    try:
        with redirect_stdout(WatchedOutput(sys.stdout, lambda: note(LOST_OUTPUT))):
            yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class TrainingMonitor:
    """Callback that ends a run on all ranks together, when the loss of one is not finite or one got a stop signal.

    About once a second, and at the end of an epoch, one all-reduce asks all ranks. It makes the ranks and the device
    wait, so the number of steps in between follows from the time that they took on the slowest rank; it at most
    doubles from one check to the next. `before_stop` is called on all ranks before Stopped is raised.
    """

    def __init__(self, request: StopRequest, before_stop: Callable[[TrainingState], None]) -> None:
        self.request, self.before_stop = request, before_stop
        self.every = 1
        self.steps = 0  # since the last check
        self.checked = time.perf_counter()

    def after_step(self, state: TrainingState) -> None:
        """Raises Stopped, or InputError when a loss is not finite."""
        self.steps += 1
        if self.steps < self.every and not state.at_epoch_end:
            return
        steps = self.steps
        number, seconds = self._check(state)
        fitting = round(steps * SECONDS_BETWEEN_CHECKS / max(seconds, 1e-6))
        self.every = max(1, min(fitting, 2 * self.every))
        if number and not state.at_epoch_end:  # else after_epoch() stops the run
            self._stop(
                state, number, f"step {state.partial.step} of {state.steps_per_epoch} in epoch {state.epoch + 1}"
            )

    def after_epoch(self, state: TrainingState) -> None:
        """Raises Stopped after an epoch that is not the last one."""
        if not state.finished and (number := self._check(state)[0]):
            self._stop(state, number, f"epoch {state.epoch}")

    def _check(self, state: TrainingState) -> tuple[int, float]:
        """On every rank: a signal that any rank got (0: none), and the slowest rank's seconds since the last check."""
        state.partial.metrics.compute()
        bad = state.partial.metrics.first_bad or math.inf
        mine = [self.request.number, -bad, time.perf_counter() - self.checked]
        number, first, seconds = dist_max(mine, state.device)  # NEW: over all ranks
        self.steps, self.checked = 0, time.perf_counter()
        if first > -math.inf:
            raise diverged(f"the loss is not finite at step {-first:.0f} of epoch {state.epoch + 1}")
        return int(number), seconds

    def _stop(self, state: TrainingState, number: int, where: str) -> None:
        self.before_stop(state)
        raise Stopped(number, f"{where}; to resume: the same command with --resume")


def exit_code_for(error: BaseException, program: str, world: World) -> int:
    """Report in one line why the run ends early, and return the exit code.

    2: bad input, and a run that does not fit into memory. As in a shell, 130, 143 and 129: SIGINT, SIGTERM and SIGHUP;
    141: lost output. 1: another rank is lost, which has reported its own error. Any other error is raised again and
    ends with its traceback.

    The first rank of a machine reports for all ranks there. Another one reports bad input of its own only after a
    delay: if the first rank has the same error, torchrun has ended this rank by then.
    """
    error = _refused_for_memory(error, world) or error
    if isinstance(error, InputError):
        line, code = error_line(program, error), 2
    elif isinstance(error, Stopped):
        line, code = str(error), 128 + error.number
    elif isinstance(error, KeyboardInterrupt):
        line, code = "interrupted", 128 + signal.SIGINT
    elif isinstance(error, LostConnection):
        line, code = f"{program}: {error}", 1
    else:
        raise error
    if code == 2 and world.local_rank:
        time.sleep(SECONDS_FOR_FIRST_RANK)
    if code in (1, 2) or world.is_main:
        print(line, file=WatchedOutput(sys.stderr, on_loss=lambda: None), flush=True)  # the code still says it
    return code


def _refused_for_memory(error: BaseException, world: World) -> InputError | None:
    """The error of a process that is out of memory as an error of the run's input; None for any other one."""
    text = str(error)
    said = isinstance(error, RuntimeError) and any(words in text for words in NO_MEMORY)
    if not (said or isinstance(error, (torch.OutOfMemoryError, MemoryError))):
        return None
    asked = re.search(r"tried to allocate (\d+(?: bytes|(?:\.\d+)? [KMG]iB))", text, re.IGNORECASE)
    more = f", when it asked for {asked[1]} more" if asked else ""
    return InputError(
        f"out of memory on rank {world.rank}{more}; use a smaller --batch-size with more --grad-accum-steps, or more "
        f"processes with --shard full"
    )
