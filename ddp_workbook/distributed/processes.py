"""Worker processes of this machine, each with a pipe to the caller: started quickly, and always ended."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from traceback import clear_frames

import psutil

from ddp_workbook.distributed.parent import end_with_owner, kill_family
from ddp_workbook.errors import InputError

MOST_PROCESSES = 64
# Imported by the server, if they are there: what a rank will need. Names, not imports: nothing here depends on them.
PRELOADED = (
    "ddp_workbook.distributed.fork_server",
    "ddp_workbook.training.loop",
    "torch._dynamo",
    "sklearn.datasets",
)


def process_context() -> BaseContext:
    """Start method: forks of a server process that has imported torch once; fresh interpreters on Windows.

    A rank that imports torch for itself needs seconds. A fork of the caller would copy the locks of its threads and
    its GPU context; the server has neither, only the imported modules.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def prepare() -> None:
    """Start the server of process_context() in the background, so that the first processes need not wait for it.

    SIGINT is blocked meanwhile: the server inherits that, until it ignores the signal by itself (fork_server.py).
    Raises InputError when the name of the temporary folder is too long for a socket in it.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return
    from multiprocessing import forkserver, resource_tracker  # cannot be imported everywhere

    process_context()
    resource_tracker.ensure_running()  # else the server starts it, which unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    except OSError as error:
        if "AF_UNIX" not in str(error):
            raise
        raise InputError(
            f"the name of the temporary folder, TMPDIR={tempfile.gettempdir()}, is too long for a socket in it; "
            f"set TMPDIR to a folder with a shorter name, such as /tmp"
        ) from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def started(
    target: Callable[..., None], arguments: Sequence[tuple], seconds_to_stop: float, duplex: bool = True
) -> Iterator[tuple[list[Connection], list[BaseProcess]]]:
    """Run target(*arguments, pipe) in one process for each tuple of arguments.

    Yields our ends of the pipes, and the processes. After the block our ends are closed and the processes get
    `seconds_to_stop` to end by themselves, then they are killed. After an error in the block, and when this process
    ends inside it, they are killed at once.
    """
    prepare()
    context = process_context()
    pipes: list[Connection] = []
    workers: list[BaseProcess] = []
    kill = atexit.register(partial(_end, workers, 0))  # Python's own exit waits for processes that are no daemons
    try:
        for each in arguments:
            ours, theirs = context.Pipe(duplex)
            pipes.append(ours)
            # Not as a daemon, which multiprocessing forbids to have child processes, such as a DataLoader's.
            workers.append(context.Process(target=_begin, args=(target, *each, theirs), daemon=False))
            _start(workers[-1])
            theirs.close()
        yield pipes, workers
        for pipe in pipes:
            pipe.close()
        _end(workers, seconds_to_stop)
    finally:
        _end(workers, 0)
        for pipe in pipes:
            pipe.close()
        atexit.unregister(kill)


def _start(worker: BaseProcess) -> None:
    """Interrupted before the server has started it, the process must not start any more."""
    try:
        worker.start()
    except BaseException as error:
        clear_frames(error.__traceback__)  # they hold the pipe without which it ends: see end_with_owner()
        raise


def _begin(target: Callable[..., None], *arguments: object) -> None:
    """The start of every process."""
    end_with_owner()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C and a notebook's stop button are for the caller
    target(*arguments)


def _end(workers: Sequence[BaseProcess], patience: float) -> None:
    """Wait for the processes at most `patience` seconds in all, or until Ctrl-C; kill what still runs."""
    deadline = time.monotonic() + patience
    workers = [worker for worker in workers if worker.pid is not None]  # None: interrupted before it was started
    try:
        for worker in workers:
            worker.join(max(0, deadline - time.monotonic()))
    finally:
        left = [worker for worker in workers if worker.is_alive()]
        for worker in left:  # all of them, before one can notice that another is gone
            with suppress(psutil.NoSuchProcess):
                kill_family(psutil.Process(worker.pid))
        for worker in left:
            worker.join()


def first_death(workers: Sequence[BaseProcess], suspect: int | None = None) -> str | None:
    """What to say about the rank that a signal has ended, else about the suspect, whose pipe is closed.

    None: there is neither. An error on another rank may only follow from such a death.
    """
    if suspect is not None:
        workers[suspect].join(1)  # until its exit code is known
    codes = [worker.exitcode or 0 for worker in workers]
    dead = next((rank for rank, code in enumerate(codes) if code < 0), suspect)
    return None if dead is None else silent_death(dead, codes[dead])


def silent_death(rank: int, code: int) -> str:
    """What to say about a rank that ended with this exit code, below 0 for a signal, and without an error."""
    cause = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
    if cause == "SIGKILL":
        cause += ", perhaps because memory ran out"
    return f"rank {rank} died without an error of its own ({cause})"
