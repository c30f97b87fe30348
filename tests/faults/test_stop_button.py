"""The stop button while torchrun runs: every rank ends, a stopped one and a deaf one too, and the reader is told."""

import inspect
import time

import psutil
from torch.distributed.elastic.multiprocessing.api import SubprocessContext

from ddp_workbook.distributed.launch import SECONDS_TO_STOP, STOPPING, torchrun

RANKS = """
import os, signal, sys, time
if os.environ["RANK"] == "0":
    signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b"my last words\\n"), sys.exit(1)))
os.write(1, b"pid %d\\n" % os.getpid())
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(300)
"""


class Reader:
    """Reads the lines, and presses the stop button when both ranks have spoken."""

    def __init__(self, presses=1):
        self.presses, self.lines, self.pids = presses, [], []

    def __call__(self, line):
        self.lines.append(line)
        if line.startswith("pid "):
            self.pids.append(int(line.split()[1]))
        if len(self.pids) == 2 and self.presses:
            self.presses -= 1
            raise KeyboardInterrupt


def stopped(path, reader):
    """Run the ranks until the reader stops them; those that are left."""
    path.write_text(RANKS)
    try:
        torchrun([], 2, path, reader)
    except KeyboardInterrupt:
        deadline = time.monotonic() + 2
        while (left := [pid for pid in reader.pids if psutil.pid_exists(pid)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left
    raise AssertionError("the stop button had no effect")


def test_a_stopped_rank_ends_too_and_the_other_ones_last_words_are_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "3")  # instead of 30; older versions do not know it
    reader = Reader()
    assert stopped(tmp_path / "ranks.py", reader) == []
    said = [line for line in reader.lines if not line.startswith("pid ")]
    assert said == [STOPPING, "my last words"]


def test_a_second_press_kills_the_ranks_at_once(tmp_path):
    reader = Reader(presses=2)
    started = time.monotonic()
    assert stopped(tmp_path / "ranks.py", reader) == []
    assert time.monotonic() - started < 30
    assert reader.lines[-1] != "my last words"


def test_the_wait_is_longer_than_torchruns_own():
    own = inspect.signature(SubprocessContext._close).parameters["timeout"].default
    assert own < SECONDS_TO_STOP
