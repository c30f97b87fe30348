"""Parents that are killed: the owner of ranks and worker pools, the runner of notebooks, torchrun.

Whatever they have started ends by itself: busy, waiting for other ranks, stopped, or in a long call into C.
See helper_tries for the number of tries; a single one has fewer processes.
"""

import os
import subprocess
import sys
import textwrap
import time
import uuid

import nbformat
import psutil
import pytest
from conftest import ROOT
from helper_tries import tries

from ddp_workbook.records.files import lock
from ddp_workbook.runs.resume import newest_complete

TRIES = tries(10)
SECONDS_TO_START = 120
SECONDS_TO_END = 5
MARK = "DDP_TEST_MARK"

STATES = """
    import ctypes, os, pathlib, signal, sys, time
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Endless(Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            while True:
                pass

    def state(rank, meet):
        print("ready", flush=True)
        while not pathlib.Path("go").exists():
            time.sleep(0.1)
        if rank == 0:
            meet()  # waits for the other ranks
        if rank == 1:
            ctypes.PyDLL(None).sleep(60)  # in C, and keeps the interpreter's lock
        if rank == 2:
            os.kill(os.getpid(), signal.SIGSTOP)
        if rank == 3:
            list(DataLoader(Endless(), num_workers=1))
        while True:
            pass
"""
CELL = """
import torch.distributed as dist
from states import state
dist.init_process_group("gloo")
state(dist.get_rank(), dist.barrier)
"""
OWNER = f"""
    import threading
    from states import state
    from ddp_workbook.config import TrainConfig
    from ddp_workbook.distributed.ranks import run_on_ranks
    from ddp_workbook.measurement.workers import WorkerPool

    def work(worker):
        state(worker.world.rank, worker.barrier)

    if __name__ == "__main__":
        threading.Thread(target=run_on_ranks, args=({CELL!r}, 5)).start()
        with WorkerPool("pool", TrainConfig(device="cpu"), 3, 1) as pool:
            pool.call(work)
"""
STUBBORN = """
    import os, signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open("lines", "a") as lines:
        lines.write("ready\\n")
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(300)
"""
RUNNER = """
    from pathlib import Path
    from ddp_workbook.course.runner import run_notebook
    run_notebook(Path("one.ipynb"), Path("done.ipynb"), {}, 0)
"""
CELL_OF_LAUNCH = """
from pathlib import Path
from ddp_workbook.distributed.launch import torchrun
torchrun([], 2, Path("stubborn.py"))
"""
TRAIN = [str(ROOT / "distributed_train.py"), "--recipe", "mlp-digits", "--epochs", "9999", "--device", "cpu"]


class Family:
    """A program in its own folder, and all processes that come from it: they have its mark in their environment."""

    def __init__(self, folder, *command):
        self.folder, self.mark, self.output = folder, uuid.uuid4().hex, folder / "lines"
        path = os.pathsep.join([str(folder), str(ROOT)])
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command], cwd=folder, env=os.environ | {MARK: self.mark, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip

    def wait_for(self, word, count=1):
        deadline = time.monotonic() + SECONDS_TO_START
        while self.output.read_text().count(word) < count:
            assert self.process.poll() is None and time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.1)

    def members(self):
        found = []
        for one in psutil.process_iter():
            try:
                if one.environ().get(MARK) == self.mark and one.status() != psutil.STATUS_ZOMBIE:
                    found.append(one)
            except psutil.Error:
                pass
        return found


def write(folder, **programs):
    for name, text in programs.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))


def start_owner(folder):
    """Ranks of a cell and a worker pool, in every state."""
    write(folder, states=STATES, owner=OWNER)
    return Family(folder, "owner.py")


def enter_states(family):
    family.wait_for("ready", 8)
    (family.folder / "go").touch()
    while sum(one.status() == psutil.STATUS_STOPPED for one in family.members()) < 2:
        time.sleep(0.1)
    time.sleep(0.5)  # until the others have got there, too


def start_runner(folder):
    """A notebook whose kernel has started torchrun; the ranks ignore SIGTERM, and one is stopped."""
    write(folder, stubborn=STUBBORN, runner=RUNNER)
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL_OF_LAUNCH)]), folder / "one.ipynb")
    return Family(folder, "runner.py")


def start_torchrun(folder):
    return Family(folder, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *TRAIN)


def stop_rank_1(family):
    """Rank 0 then waits for it."""
    family.wait_for("epoch ")
    for one in family.members():
        if one.environ().get("RANK") == "1":
            one.suspend()


KINDS = {
    "owner of ranks and a pool": (start_owner, enter_states),
    "runner": (start_runner, lambda family: family.wait_for("ready", 2)),
    "torchrun, a rank stopped": (start_torchrun, stop_rank_1),
}
if TRIES > 1:
    KINDS["torchrun"] = (start_torchrun, lambda family: family.wait_for("epoch "))


@pytest.fixture
def families(tmp_path):
    """One of each kind; what a test leaves behind is killed."""
    found = {}
    for place, (kind, (start, _)) in enumerate(KINDS.items()):
        folder = tmp_path / str(place)
        folder.mkdir()
        found[kind] = start(folder)
    yield found
    for family in found.values():
        for one in family.members():
            one.kill()
        family.process.wait()


@pytest.mark.parametrize("number", range(TRIES))
def test_nothing_outlives_its_parent(number, families, tmp_path):
    """All kinds of parents are killed at once; those alone, not their process groups."""
    for kind, (_, prepare) in KINDS.items():
        prepare(families[kind])
        assert len(families[kind].members()) > 2
    killed, seconds = time.monotonic(), {}
    for family in families.values():
        family.process.kill()
    for family in families.values():
        family.process.wait()
    while len(seconds) < len(families) and time.monotonic() < killed + SECONDS_TO_END:
        time.sleep(0.05)
        for kind, family in families.items():
            if kind not in seconds and not family.members():
                seconds[kind] = time.monotonic() - killed
    print("\nended:", *(f"{kind} after {when:.1f} s" for kind, when in seconds.items()), sep="\n  ")
    assert [" ".join(one.cmdline()) for family in families.values() for one in family.members()] == []
    for path in tmp_path.rglob(".*.lock"):
        with lock(path, "a process still has it"):
            pass
    for kind, family in families.items():
        if "torchrun" in kind:
            assert newest_complete(family.folder / "checkpoints" / "distributed_mlp_digits", print)
