"""Code on several ranks, started in under a second: the %%ranks cells of the notebooks."""

from __future__ import annotations

import gc
import io
import linecache
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from ddp_workbook.devices import choose_threads
from ddp_workbook.distributed.launch import LaunchError, check_process_count
from ddp_workbook.distributed.process_group import bind_to_loopback, require_interface
from ddp_workbook.distributed.processes import first_death, started
from ddp_workbook.distributed.quiet_gloo import silence_gloo
from ddp_workbook.distributed.rendezvous import ADDRESS, serve_store

CELL = "<cell>"
SECONDS_TO_STOP = 5


def run_on_ranks(
    code: str, processes: int, on_line: Callable[[str], None] = lambda line: print(line, flush=True)
) -> None:
    """Run `code` in `processes` new processes with torchrun's variables set; `on_line` gets each line they print.

    Raises LaunchError with the error of the rank that failed first, and ends the others. The processes are forks of a
    server that has torch imported (processes.process_context), so a cell does not wait for torchrun and its imports.
    """
    check_process_count(processes)
    require_interface()
    store = serve_store()  # as torchrun's agent would serve it, but on loopback only
    arguments = [(code, _variables(rank, processes, store.port)) for rank in range(processes)]
    with started(_run, arguments, SECONDS_TO_STOP, duplex=False) as (pipes, workers):
        _listen(pipes, workers, on_line)


def _variables(rank: int, processes: int, port: int) -> dict[str, str]:
    """The environment variables that torchrun sets for a script."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": ADDRESS,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store exists: rank 0 need not open one
    }


def _listen(pipes: Sequence[Connection], workers: Sequence[BaseProcess], on_line: Callable[[str], None]) -> None:
    """Pass lines on until every rank has ended; raise LaunchError when one fails."""
    running = {pipe: rank for rank, pipe in enumerate(pipes)}
    while running:
        for pipe in wait(list(running)):
            try:
                kind, text = pipe.recv()
            except (EOFError, OSError):
                raise LaunchError(first_death(workers, running[pipe])) from None
            if kind == "line":
                on_line(text)
            elif kind == "error":
                raise LaunchError(first_death(workers) or f"rank {running[pipe]} failed:\n{text}")
            else:
                del running[pipe]


class _Lines(io.TextIOBase):
    """Replaces stdout: sends complete lines, so that lines of several ranks do not mix."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.rest = pipe, ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.pipe.send(("line", line))
        return len(text)

    def finish(self) -> None:
        """Send a last line that does not end with a line break."""
        if self.rest:
            self.write("\n")


def _run(code: str, variables: dict[str, str], pipe: Connection) -> None:
    """One rank, from start to end."""
    if "fork" in multiprocessing.get_all_start_methods():  # so that a DataLoader's workers know the cell's classes
        multiprocessing.set_start_method("fork", force=True)
    os.environ.update(variables)
    bind_to_loopback()
    silence_gloo()
    torch.set_num_threads(choose_threads(0, int(variables["LOCAL_WORLD_SIZE"])))
    sys.stdout = sys.stderr = lines = _Lines(pipe)
    linecache.cache[CELL] = (len(code), None, code.splitlines(keepends=True), CELL)  # tracebacks can quote the cell
    try:
        exec(compile(code, CELL, "exec"), {"__name__": "__main__"})
    except BaseException as error:
        if not isinstance(error, SystemExit) or error.code:  # sys.exit() and sys.exit(0) end a script normally
            lines.finish()
            pipe.send(("error", _traceback_of_cell(error)))
            return
    lines.finish()
    gc.collect()  # a DDP model in the cell may hold the process group: see process_group.process_group
    pipe.send(("end", ""))


def _traceback_of_cell(error: BaseException) -> str:
    """The error with the cell's lines that led to it, without those of this file."""
    trace = error.__traceback__.tb_next  # the first entry is exec's own
    return "".join(traceback.format_exception(type(error), error, trace)).rstrip()
