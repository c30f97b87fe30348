"""Code on several ranks at once, started within a second: what the notebooks' %%ranks cells do."""

from __future__ import annotations

import gc
import io
import linecache
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait

import torch

from ddp_workbook.devices import choose_threads
from ddp_workbook.distributed import bind_to_loopback
from ddp_workbook.errors import InputError
from ddp_workbook.launch import MOST_PROCESSES, LaunchError
from ddp_workbook.rendezvous import ADDRESS, serve_store
from ddp_workbook.team import process_context

CELL = "<cell>"
SECONDS_TO_STOP = 5


def run_on_ranks(
    code: str, processes: int, on_line: Callable[[str], None] = lambda line: print(line, flush=True)
) -> None:
    """Run `code` in `processes` new processes with torchrun's variables set, passing on each line that they print.

    Raises LaunchError with the error of the rank that failed first, and ends the others. The processes are forks of a
    server that has torch imported (team.process_context), so that a cell need not wait for torchrun and its imports.
    """
    if not 1 <= processes <= MOST_PROCESSES:
        raise InputError(f"the number of processes must be from 1 to {MOST_PROCESSES}, not {processes}")
    context = process_context()
    store = serve_store()  # as torchrun's agent would offer it, but open to this machine alone
    pipes, workers = [], []
    for rank in range(processes):
        ours, theirs = context.Pipe(duplex=False)
        arguments = (code, _variables(rank, processes, store.port), theirs)
        workers.append(context.Process(target=_run, args=arguments, daemon=True))
        workers[-1].start()
        theirs.close()
        pipes.append(ours)
    patience = 0  # when a rank has failed, or the reader has pressed stop
    try:
        _listen(pipes, on_line)
        patience = SECONDS_TO_STOP
    finally:
        for worker in workers:
            worker.join(patience)
            worker.kill()
            worker.join()


def _variables(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun sets for a script."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": ADDRESS,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is there; rank 0 need not make one
    }


def _listen(pipes: list[Connection], on_line: Callable[[str], None]) -> None:
    """Pass lines on until every rank has ended; raise when one has failed."""
    talking = {pipe: rank for rank, pipe in enumerate(pipes)}
    while talking:
        for pipe in wait(list(talking)):
            try:
                kind, text = pipe.recv()
            except (EOFError, OSError):
                raise LaunchError(f"rank {talking[pipe]} died without an error of its own") from None
            if kind == "line":
                on_line(text)
            elif kind == "error":
                raise LaunchError(f"rank {talking[pipe]} failed:\n{text}")
            else:
                del talking[pipe]


class _Lines(io.TextIOBase):
    """Stands in for stdout: sends whole lines, so that those of several ranks do not run together."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.rest = pipe, ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.pipe.send(("line", line))
        return len(text)

    def finish(self) -> None:
        """Send a last line that has no end."""
        if self.rest:
            self.write("\n")


def _run(code: str, variables: dict[str, str], pipe: Connection) -> None:
    """The life of one rank."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the stop button is the notebook's to handle: it ends this process
    os.environ.update(variables)
    bind_to_loopback()
    torch.set_num_threads(choose_threads(0, int(variables["LOCAL_WORLD_SIZE"])))
    sys.stdout = sys.stderr = lines = _Lines(pipe)
    linecache.cache[CELL] = (len(code), None, code.splitlines(keepends=True), CELL)  # a traceback can quote the cell
    try:
        exec(compile(code, CELL, "exec"), {"__name__": "__main__"})
    except BaseException as error:
        if not isinstance(error, SystemExit) or error.code:  # sys.exit() and sys.exit(0) are a script's good end
            lines.finish()
            pipe.send(("error", _in_the_cell(error)))
            return
    lines.finish()
    gc.collect()  # a DDP model in the cell may hold the process group: distributed.process_group says what that does
    pipe.send(("end", ""))


def _in_the_cell(error: BaseException) -> str:
    """The error and the lines of the cell that led to it, without those of this file."""
    trace = error.__traceback__.tb_next  # the first is exec's own
    return "".join(traceback.format_exception(type(error), error, trace)).rstrip()
