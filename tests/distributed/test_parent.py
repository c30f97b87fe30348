"""Processes that end with the one that started them, by the means of every system; tests/faults kills real parents."""

import os
import socket
import subprocess
import sys
import textwrap
import time

import psutil
import pytest
import torch.distributed.run
from conftest import ROOT

from ddp_workbook.distributed import agent, rendezvous
from ddp_workbook.distributed.agent import end_with_torchrun
from ddp_workbook.distributed.process_group import LostConnection, World

PROGRAM = """
    import multiprocessing, os, sys, time
    from ddp_workbook.distributed import parent

    def child(platform):
        sys.platform = platform
        {how}
        print(os.getpid(), flush=True)
        while True:
            pass

    if __name__ == "__main__":
        multiprocessing.get_context("spawn").Process(target=child, args=({platform!r},)).start()
        time.sleep(300)
"""


def runs(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("platform", ["linux", "darwin"])  # darwin: as on a system where the kernel does not help
@pytest.mark.parametrize("how", ["parent.end_with_owner()", "parent.end_with_parent(os.getppid())"])
def test_a_busy_process_ends_with_the_one_that_started_it(how, platform, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(PROGRAM.format(how=how, platform=platform)))
    with subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, env={"PYTHONPATH": str(ROOT)}) as owner:
        child = psutil.Process(int(owner.stdout.readline()))
        owner.kill()
    deadline = time.monotonic() + 5
    while (left := runs(child)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def test_a_process_whose_parent_has_ended_before_it_looked_ends_too(tmp_path):
    program = "import os, time; from ddp_workbook.distributed.parent import end_with_parent\n"
    program += "end_with_parent(os.getpid()); time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=30, check=False)
    assert done.returncode == -15


NOT_LEFT = """
    import multiprocessing
    from ddp_workbook.distributed import processes

    def busy(pipe):
        pipe.send("here")
        while True:
            pass

    if __name__ == "__main__":
        processes.process_context = lambda: multiprocessing.get_context("spawn")
        block = processes.started(busy, [(), ()], seconds_to_stop=60)
        for pipe in block.__enter__()[0]:
            pipe.recv()
"""


def test_python_ends_without_waiting_for_processes_whose_block_was_never_left(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(NOT_LEFT))
    subprocess.run([sys.executable, path], env={"PYTHONPATH": str(ROOT)}, timeout=30, check=True)


INTERRUPTED = """
    import os, signal, threading, time
    import psutil
    from ddp_workbook.distributed import processes

    def busy(pipe):
        while True:
            pass

    if __name__ == "__main__":
        processes.PRELOADED = ("slow",)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            with processes.started(busy, [()], 1):
                raise AssertionError("the fork server was faster than the interrupt")
        except KeyboardInterrupt as error:
            kept = error  # as a notebook keeps it
        time.sleep(2)
        print([one.pid for child in psutil.Process().children() for one in child.children()])
"""


def test_an_interrupt_while_the_fork_server_starts_leaves_no_process(tmp_path):
    (tmp_path / "slow.py").write_text("import time; time.sleep(1.5)")
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(INTERRUPTED))
    path_of_python = os.pathsep.join([str(ROOT), str(tmp_path)])
    done = subprocess.run(
        [sys.executable, path], env={"PYTHONPATH": path_of_python}, capture_output=True, text=True, timeout=30,
        check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "[]", done.stderr


@pytest.fixture
def watched(monkeypatch):
    """The parents that this process would end with, if it did not belong to the test."""
    found = []
    monkeypatch.setattr(agent, "end_with_parent", found.append)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    return found


@pytest.mark.parametrize("world", [World(), World(launched=True)])
def test_what_was_started_by_hand_outlives_its_shell(watched, world):
    end_with_torchrun(world)
    assert watched == []


def test_torchrun_outlives_its_shell_but_not_the_program_that_launched_it(watched, monkeypatch):
    given = []
    monkeypatch.setattr(torch.distributed.run, "main", given.append)
    rendezvous.main(["train.py"])
    assert watched == []
    monkeypatch.setattr("sys.argv", ["agent.py", "42", "train.py"])
    agent.main()
    assert watched == [42]
    assert given == [["--rdzv-backend=loopback", "--rdzv-endpoint=127.0.0.1", "train.py"]] * 2


def test_a_rank_ends_with_torchrun(watched, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as store:
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(store.getsockname()[1]))
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        end_with_torchrun(World(launched=True))
        assert watched == [os.getppid()]
    with pytest.raises(LostConnection, match="because torchrun has ended"):  # before the rank could look after it
        end_with_torchrun(World(launched=True))
