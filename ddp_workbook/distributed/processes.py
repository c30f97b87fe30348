"""Worker processes of this machine, each with a pipe to the caller: started quickly, and always ended."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext

MOST_PROCESSES = 64
# Imported by the server, if they are there: what a rank will need. Names, not imports: nothing here depends on them.
PRELOADED = ("ddp_workbook.training.loop", "torch._dynamo", "sklearn.datasets")


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


@contextmanager
def started(
    target: Callable[..., None], arguments: Sequence[tuple], seconds_to_stop: float, duplex: bool = True
) -> Iterator[list[Connection]]:
    """Run target(*arguments, pipe) in one process for each tuple of arguments; yields our ends of the pipes.

    After the block our ends are closed and the processes get `seconds_to_stop` to end by themselves, then they are
    killed. After an error in the block they are killed at once.
    """
    context = process_context()
    pipes, workers = [], []
    patience: float = 0
    try:
        for each in arguments:
            ours, theirs = context.Pipe(duplex)
            pipes.append(ours)
            workers.append(context.Process(target=target, args=(*each, theirs), daemon=True))
            workers[-1].start()
            theirs.close()
        yield pipes
        patience = seconds_to_stop
    finally:
        for pipe in pipes:
            pipe.close()
        for worker in workers:
            worker.join(patience)
            worker.kill()
            worker.join()
