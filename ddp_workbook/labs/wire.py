"""A simulated link between ranks that are threads of one process: exact deadlock reports, and costs without a clock.

Only one rank runs at a time, and a seeded random generator chooses which, at every send and receive. So a seed gives
the same run again, and a hundred seeds try a hundred orders.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

MOST_MESSAGES = 10_000  # of one run; more than any lab needs


class Deadlock(Exception):
    """Every rank that has not returned waits for another one. The message says who waits for whom."""

    def __init__(self, waiting: dict[int, str], message: str) -> None:
        super().__init__(message)
        self.waiting = waiting


class RankFailed(Exception):
    """A rank raised `error`."""

    def __init__(self, rank: int, error: BaseException) -> None:
        super().__init__(f"rank {rank}: {type(error).__name__}: {error}")
        self.rank, self.error = rank, error


class _Stop(BaseException):
    """Ends a rank's thread when another one has failed."""


@dataclass
class Meter:
    """What one rank did. `steps` is its Lamport clock: the length of the longest chain of messages that led here."""

    sent: int = 0
    """Bytes."""
    received: int = 0
    """Bytes."""
    messages: int = 0
    """Messages sent."""
    steps: int = 0


@dataclass
class _Message:
    source: int
    to: int
    tensor: Tensor
    starts: int
    arrives: int = 0
    """Steps; 0 until the receiver has taken it."""
    waited_for: bool = False
    """By its sender."""


class Sending:
    """A message on its way. Until wait() has returned, its tensor must not be changed."""

    def __init__(self, wire: Wire, message: _Message) -> None:
        self._wire, self._message = wire, message

    def wait(self) -> None:
        """Return when the receiver has taken the message."""
        wire, message = self._wire, self._message
        message.waited_for = True
        wire._simulation.pause(wire.rank, lambda: message.arrives > 0, f"waits to send to {message.to}")
        wire.meter.steps = max(wire.meter.steps, message.arrives)


class Wire:
    """One rank's end of the link: `rank`, `size`, and the calls of torch.distributed with the same names."""

    def __init__(self, simulation: Simulation, rank: int) -> None:
        self._simulation = simulation
        self.rank, self.size = rank, simulation.size
        self.meter = Meter()
        self._port_free = 0  # steps: a rank sends one message after another

    def send(self, tensor: Tensor, to: int) -> None:
        """Send a tensor to rank `to`; returns when that rank has received it."""
        self.isend(tensor, to).wait()

    def isend(self, tensor: Tensor, to: int) -> Sending:
        """Begin to send, and return at once; wait() on the result returns when the receiver has taken the tensor."""
        self._check(to, "send to")
        if not isinstance(tensor, Tensor):
            raise TypeError(f"a tensor can be sent, not {type(tensor).__name__}")
        starts = max(self.meter.steps, self._port_free)
        self._port_free = starts + 1
        message = _Message(self.rank, to, tensor, starts)
        self.meter.sent += tensor.nbytes
        self.meter.messages += 1
        self._simulation.post(message)
        return Sending(self, message)

    def recv(self, source: int) -> Tensor:
        """Wait for the next tensor from rank `source`, and return it."""
        self._check(source, "receive from")
        message = self._simulation.take(self.rank, source)
        message.arrives = max(message.starts, self.meter.steps) + 1
        self.meter.steps = message.arrives
        self.meter.received += message.tensor.nbytes
        return message.tensor.detach().clone()

    def _check(self, other: int, action: str) -> None:
        if not isinstance(other, int) or not 0 <= other < self.size:
            raise ValueError(f"rank {self.rank} cannot {action} rank {other}: there are ranks 0 to {self.size - 1}")
        if other == self.rank:
            raise ValueError(f"rank {self.rank} cannot {action} itself")


@dataclass
class _Rank:
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    ready: Callable[[], bool] = lambda: True
    waits: str = ""
    result: object = None
    error: BaseException | None = None
    finished: bool = False


class Simulation:
    """`size` ranks whose turns are drawn with `seed`; on_turn() is called after each. Use it for one run."""

    def __init__(self, size: int, seed: int, on_turn: Callable[[], None] = lambda: None) -> None:
        self.size, self.random, self.on_turn = size, random.Random(seed), on_turn
        self.wires = [Wire(self, rank) for rank in range(size)]
        self._ranks = [_Rank() for _ in range(size)]
        self._back = threading.Semaphore(0)
        self._queues: dict[tuple[int, int], list[_Message]] = {}
        self.messages: list[_Message] = []
        self._stopping = False

    def run(self, function: Callable[[Wire], object]) -> list[object]:
        """function(wire) on every rank; returns their results.

        Raises Deadlock when none of them can go on, RankFailed when one raises, and for a message nobody received.
        """
        threads = [threading.Thread(target=self._run, args=(rank, function), daemon=True) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        try:
            self._take_turns()
        finally:
            self._stopping = True
            for rank in self._ranks:
                rank.go.release()
            for thread in threads:
                thread.join()
        for (source, to), queue in self._queues.items():
            if queue:
                raise RankFailed(to, RuntimeError(f"{len(queue)} message(s) from rank {source} were never received"))
        return [rank.result for rank in self._ranks]

    def _run(self, number: int, function: Callable[[Wire], object]) -> None:
        rank = self._ranks[number]
        rank.go.acquire()
        try:
            if not self._stopping:
                rank.result = function(self.wires[number])
        except _Stop:
            return
        except BaseException as error:
            rank.error = error
        rank.finished = True
        self._back.release()

    def _take_turns(self) -> None:
        while running := [rank for rank in self._ranks if not rank.finished]:
            ready = [rank for rank in running if rank.ready()]
            if not ready:
                raise self._deadlock()
            chosen = self.random.choice(ready)
            chosen.go.release()
            self._back.acquire()
            self.on_turn()
            if chosen.error:
                raise RankFailed(self._ranks.index(chosen), chosen.error)

    def pause(self, rank: int, ready: Callable[[], bool] = lambda: True, waits: str = "") -> None:
        """Called by a rank's thread: let others run until `ready()`."""
        mine = self._ranks[rank]
        mine.ready, mine.waits = ready, waits
        self._back.release()
        mine.go.acquire()
        if self._stopping:
            raise _Stop

    def post(self, message: _Message) -> None:
        """Put a message on the link."""
        self._queues.setdefault((message.source, message.to), []).append(message)
        self.messages.append(message)
        if sum(wire.meter.messages for wire in self.wires) > MOST_MESSAGES:
            raise RuntimeError(f"more than {MOST_MESSAGES} messages: does a loop never end?")
        self.pause(message.source)

    def take(self, rank: int, source: int) -> _Message:
        """The next message from `source`, when there is one."""
        queue = self._queues.setdefault((source, rank), [])
        self.pause(rank, lambda: bool(queue), f"waits to receive from {source}")
        return queue.pop(0)

    def _deadlock(self) -> Deadlock:
        waiting = {number: rank.waits for number, rank in enumerate(self._ranks) if not rank.finished}
        report = ", ".join(f"{number} {waits}" for number, waits in waiting.items())
        returned = [number for number, rank in enumerate(self._ranks) if rank.finished]
        ended = f"; returned: {', '.join(map(str, returned))}" if returned else ""
        return Deadlock(waiting, f"nobody can go on with {self.size} ranks: {report}{ended}")
