"""What all ranks ask each other while they train, about once a second: is all well, and shall we go on?"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch.distributed as dist

from ddp_workbook.checkpoint import TrainingState
from ddp_workbook.devices import synchronize
from ddp_workbook.distributed import communication_since, reduce_list
from ddp_workbook.endings import Stopped, StopRequest
from ddp_workbook.errors import diverged
from ddp_workbook.record import Communication
from ddp_workbook.resume import Keeper

SECONDS_BETWEEN = 1.0


@dataclass(frozen=True)
class Answer:
    """The same on every rank: the signal that any of them got (0: none), whether the end of an epoch calls for a
    checkpoint, and the seconds since the last time on the slowest rank.
    """

    signal: int
    due: bool
    seconds: float


class Watch:
    """Stops a run that diverges, stops it when it is asked to, and lets its keeper write checkpoints.

    Asking makes the ranks and the device wait, so it happens about once a second, and at the end of an epoch. The
    steps in between follow from the time that they took on the slowest rank, and at most double from one time to the
    next.
    """

    def __init__(self, request: StopRequest | None = None, keeper: Keeper | None = None) -> None:
        self.request, self.keeper = request or StopRequest(), keeper
        self.every = 1
        self.taken = 0  # steps since the last time
        self.asked = time.perf_counter()

    def after_step(self, state: TrainingState, steps: int) -> None:
        """After each of an epoch's `steps` optimizer steps. Raises Stopped, or InputError when a loss is no number."""
        self.taken += 1
        step, done = state.partial.step, state.epoch * steps + state.partial.step
        due = self.keeper is not None and self.keeper.is_due(done)
        if self.taken < self.every and step < steps and not due:
            return
        taken, answer = self.taken, self._ask(state)
        fitting = round(taken * SECONDS_BETWEEN / max(answer.seconds, 1e-6))
        self.every = max(1, min(fitting, 2 * self.every))
        if step < steps:  # else the end of the epoch, with its own checkpoint, is at hand
            self._act(answer.signal, due, state, done, f"step {step} of {steps} in epoch {state.epoch + 1}")

    def after_epoch(self, state: TrainingState, steps: int) -> None:
        """After an epoch that is not the last one. Raises Stopped."""
        answer = self._ask(state)
        self._act(answer.signal, answer.due, state, state.epoch * steps, f"epoch {state.epoch}")

    def _ask(self, state: TrainingState) -> Answer:
        state.partial.tally.count()
        bad = state.partial.tally.first_bad or math.inf
        due = self.keeper is not None and self.keeper.is_due_after_epoch()
        mine = [self.request.number, -bad, time.perf_counter() - self.asked, due]
        number, first, seconds, due = reduce_list(mine, dist.ReduceOp.MAX, state.amp.device)  # NEW: over all ranks
        self.taken = 0
        self.asked = time.perf_counter()
        if first > -math.inf:
            raise diverged(f"the loss is no longer a number at step {-first:.0f} of epoch {state.epoch + 1}")
        return Answer(int(number), bool(due), seconds)

    def _act(self, signal: int, due: bool, state: TrainingState, done: int, where: str) -> None:
        saved = self.keeper is not None and (due or signal > 0)
        if saved:
            with state.partial.clock.paused():
                self._save(state, done)
            self.asked = time.perf_counter()
        if signal:
            raise Stopped(signal, f"{where}; to go on: the same command with --resume" if saved else where)

    def _save(self, state: TrainingState, done: int) -> None:
        synchronize(state.amp.device)
        partial = state.partial
        if partial.step:
            partial.communication = add_communication(partial.communication, communication_since(state.model))
        self.keeper.save(state, done)


def add_communication(first: Communication | None, second: Communication | None) -> Communication | None:
    """The traffic of two parts of an epoch together."""
    if first is None or second is None:
        return first or second
    names = Communication.model_fields
    return Communication(**{name: getattr(first, name) + getattr(second, name) for name in names})
