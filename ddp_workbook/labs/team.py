"""A program of a judge on real ranks: fresh processes, a ledger on each, and a report when they hang."""

from __future__ import annotations

import hashlib
import os
import random
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist
from torch.distributed import all_gather_object  # by name: an answer may replace torch.distributed's

from ddp_workbook.distributed.parent import adopt_orphans
from ddp_workbook.distributed.process_group import bind_to_loopback, require_interface
from ddp_workbook.distributed.processes import first_death, started
from ddp_workbook.distributed.rendezvous import ADDRESS, serve_store
from ddp_workbook.errors import InputError
from ddp_workbook.labs import ledger
from ddp_workbook.labs.answer import Answer
from ddp_workbook.labs.verdict import CannotJudge, Wrong

SECONDS = 6  # from when all ranks have met to the end of the program; longer: they hang
SECONDS_TO_START = 60
MOST_MEMORY = 3 * 2**30  # bytes that a rank may allocate
MOST_OUTPUT = 4_000  # characters that an answer may print


@dataclass
class Rank:
    """What a judge's program gets on each rank."""

    rank: int
    size: int
    seed: int
    """New at each try, the same on all ranks."""
    names: dict[str, object]
    """What the answer defines."""
    ledger: ledger.Ledger
    folder: Path
    """One for all parts of a try: what one part leaves there, the next one finds. Gone after the try."""

    def __post_init__(self) -> None:
        self._group = dist.new_group(backend="gloo") if self.size > 1 else None

    def gather(self, value: object) -> list:
        """The values of all ranks, on every rank.

        In a group of its own: it is not in the ledger, and it cannot meet a collective of the answer that another rank
        has left out. That one stays alone and hangs.
        """
        values: list = [None] * self.size
        all_gather_object(values, value, group=self._group)
        return values

    def hashes(self, tensors: Sequence[torch.Tensor]) -> list[str]:
        """On every rank: SHA-256 of these tensors on each rank, so that bits can be compared."""
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return self.gather(digest.hexdigest())


Program = Callable[[Rank], object]


def run(program: Program, answer: Answer, ranks: int, seconds: float = SECONDS, folder: Path = Path()) -> list[object]:
    """program(rank) on `ranks` ranks, or without any group when it is 1; returns their results.

    Raises Wrong with what the program found, with the answer's own error, or with where the ranks hang; CannotJudge
    when the ranks could not be started.
    """
    if ranks > 1 and not dist.is_gloo_available():
        raise CannotJudge("this build of torch has no Gloo, which sends data between processes")
    seed = random.SystemRandom().randrange(2**31)
    try:
        if ranks > 1:
            require_interface()
        store = serve_store() if ranks > 1 else None
        port = store.port if store else 0
        arguments = [(program, answer, folder, rank, ranks, seed, port) for rank in range(ranks)]
        with started(_rank, arguments, seconds_to_stop=0) as (pipes, workers):
            return _listen(pipes, workers, seconds)
    except (InputError, OSError, EOFError) as error:
        raise CannotJudge(f"the judge cannot start {ranks} rank(s): {error}") from error


def _listen(pipes: Sequence[Connection], workers: Sequence[BaseProcess], seconds: float) -> list[object]:
    running, results = {pipe: rank for rank, pipe in enumerate(pipes)}, {}
    starting, deadline = len(pipes), time.monotonic() + SECONDS_TO_START
    while running:
        ready = wait(list(running), timeout=max(0, deadline - time.monotonic()))
        if not ready and starting:
            raise CannotJudge(f"the {len(pipes)} ranks did not meet within {SECONDS_TO_START} s")
        if not ready:
            raise Wrong("hang", f"nothing moves after {seconds:g} s: {_where_all(pipes)}")
        for pipe in ready:
            rank = running[pipe]
            try:
                kind, content = pipe.recv()
            except (EOFError, OSError):
                death = first_death(workers, rank)
                raise (CannotJudge(death) if starting else Wrong("died", death)) from None
            if kind == "wrong":
                raise Wrong(*content)
            if kind == "broken":
                raise CannotJudge(content)
            if kind == "ready":
                starting -= 1
                if not starting:
                    deadline = time.monotonic() + seconds
            elif kind == "output":
                print(content, end="", flush=True)
            else:
                results[rank] = content
                del running[pipe]
    return [results[rank] for rank in range(len(pipes))]


def _where_all(pipes: Sequence[Connection]) -> str:
    """Where each rank is: asked of a thread in each of them."""
    words, phases = [], []
    for rank, pipe in enumerate(pipes):
        pipe.send("where")
        phase, text = "", "does not respond"
        if pipe.poll(1):
            kind, content = pipe.recv()
            phase, text = content if kind == "where" else (phase, text)
        words.append(f"rank {rank} {text}")
        phases += [phase] if phase and phase not in phases else []
    return "".join(f"{phase}: " for phase in phases) + "; ".join(words)


class _Output:
    """Replaces stdout: passes on the first MOST_OUTPUT characters."""

    def __init__(self, send: Callable[[tuple], None]) -> None:
        self.send, self.left = send, MOST_OUTPUT

    def write(self, text: str) -> int:
        if self.left > 0:
            self.send(("output", text[: self.left]))
            if len(text) > self.left:
                self.send(("output", "\n[the rest of the output is left out]\n"))
        self.left -= len(text)
        return len(text)

    def flush(self) -> None:
        """Nothing waits here."""


def _rank(
    program: Program, answer: Answer, folder: Path, rank: int, size: int, seed: int, port: int, pipe: Connection
) -> None:
    """One rank, from start to end. It stays until it is killed, so that the others see no lost connection."""
    adopt_orphans()
    lock = threading.Lock()
    log = ledger.Ledger(answer.file)
    state = {"finished": False}

    def send(message: tuple) -> None:
        with lock:
            pipe.send(message)

    def answer_questions() -> None:
        while True:
            pipe.recv()
            send(("where", (log.phase, "has finished" if state["finished"] else _where(main, log))))

    main = threading.get_ident()
    _limit_memory()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of names that newer versions of torch call otherwise
    threading.Thread(target=answer_questions, daemon=True).start()
    try:
        if size > 1:
            bind_to_loopback()
            ledger.join(log, dist.TCPStore(ADDRESS, port, is_master=False), rank, size, SECONDS_TO_START)
    except (RuntimeError, OSError) as error:
        send(("broken", f"rank {rank} cannot reach the others: {error}"))
        return
    send(("ready", None))
    sys.stdout = sys.stderr = _Output(send)
    torch.manual_seed(seed + rank)
    try:
        result = program(Rank(rank, size, seed, answer.load(), log, folder))
        state["finished"] = True
        send(("done", result))
    except BaseException as error:
        if size > 1:
            error.add_note(f"on rank {rank} of {size}")
        wrong = answer.failed(error)
        when = f"{log.phase}: " if log.phase and wrong.diagnosis == "error" else ""
        send(("wrong", (wrong.diagnosis, when + wrong.message)))
    threading.Event().wait()


def _where(main: int, log: ledger.Ledger) -> str:
    """Where the main thread is, by its stack and its ledger."""
    frames = sys._current_frames()
    lines = [
        _line_of(frame, log.answer) for frame in (frames.pop(main), *frames.values())
    ]  # a simulated rank: a thread
    line = next((line for line in lines if line), None)
    calls = len(log.entries)
    after = f", after its collective no. {calls}, {ledger.where(log.entries[-1])}" if calls else ""
    return (f"is at your line {line}" if line else "is outside of your code") + after


def _line_of(frame: FrameType | None, file: str) -> int | None:
    while frame and frame.f_code.co_filename != file:
        frame = frame.f_back
    return frame and frame.f_lineno


def _limit_memory() -> None:
    if os.name == "posix":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
