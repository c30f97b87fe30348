"""Processes that end when the process that started them is gone, killed or crashed, so that none is left behind."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import wait

import psutil

SECONDS_TO_STOP = 2
SECONDS_BETWEEN_LOOKS = 0.25
PR_SET_PDEATHSIG = 1  # of Linux's prctl(): the signal that a process gets when its parent dies
PR_SET_CHILD_SUBREAPER = 36  # of the same: the process becomes the parent of descendants whose own parent has ended


def end_with_owner() -> None:
    """In a process of multiprocessing: end at once, with all child processes, when the process that asked for it ends.

    That owner holds the other end of a pipe; the parent is only the fork server. On Linux the kernel watches the pipe
    and sends SIGKILL, which also ends a process that is stopped or inside a long call into C++.
    """
    pipe = multiprocessing.parent_process().sentinel
    if sys.platform != "linux":
        threading.Thread(target=_end_at_eof, args=(pipe, None), daemon=True).start()
        return
    import fcntl

    os.setpgid(0, 0)  # a process group of its own: the signal is for all processes in it
    fcntl.fcntl(pipe, fcntl.F_SETOWN, -os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, os.O_ASYNC)
    _end_at_eof(pipe, 0)  # the owner may have ended before


def _end_at_eof(pipe: int, seconds: float | None) -> None:
    """End this process if the other end of the pipe is closed within so many seconds; None: wait for that."""
    if wait([pipe], seconds):
        kill_family(psutil.Process())


def end_with_parent(parent: int) -> None:
    """When the parent, the process `parent`, is gone, end this process, too.

    First it gets SIGTERM, so that training stops with a checkpoint; after SECONDS_TO_STOP it is killed, with all child
    processes. On Linux a process that is stopped is continued for that.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGCONT)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent and psutil.pid_exists(parent):  # on Windows getppid() never changes
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if os.name == "posix":  # by default SIGALRM ends a process, also one that shuts down, where no thread runs any more
        signal.setitimer(signal.ITIMER_REAL, SECONDS_TO_STOP + 0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_STOP)
    kill_family(psutil.Process())


def adopt_orphans() -> None:
    """On Linux: processes that this one starts stay its descendants, even in a session of their own (a daemon)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def kill_family(process: psutil.Process) -> None:
    """SIGKILL to a process and everything that it has started; harmless when it has ended."""
    with suppress(psutil.NoSuchProcess):
        for one in (*process.children(recursive=True), process):
            with suppress(psutil.NoSuchProcess):
                one.kill()
