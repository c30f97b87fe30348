"""torchrun as a subprocess: a rank's error is raised, a refusal is one line, no process is left."""

import subprocess
import sys
import textwrap
import time

import psutil
import pytest
from conftest import ROOT

from ddp_workbook.distributed.launch import STOPPING, Launch, LaunchError, torchrun, training_script
from ddp_workbook.errors import InputError


def script(tmp_path, body):
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(body))
    return path


def test_output_comes_line_by_line(tmp_path):
    # torchrun's ranks share a pipe and are unbuffered: print would send each word by itself, between those of the other
    body = "import os, sys; sys.stdout.write(' '.join(['rank', os.environ['RANK'], *sys.argv[1:]]) + '\\n')"
    path = script(tmp_path, body)
    lines = []
    torchrun(["--flag", "x"], 2, path, lines.append)
    assert sorted(lines) == ["rank 0 --flag x", "rank 1 --flag x"]


def test_the_failing_ranks_own_error_is_raised(tmp_path):
    body = """
        import os, time
        from torch.distributed.elastic.multiprocessing.errors import record

        @record
        def main():
            if os.environ["RANK"] == "1":
                raise KeyError("only rank 1 fails")
            time.sleep(60)

        main()
    """
    start = time.monotonic()
    with pytest.raises(LaunchError, match=r"KeyError.*only rank 1 fails"):
        torchrun([], 2, script(tmp_path, body), lambda line: None)
    assert time.monotonic() - start < 45


def test_a_refusal_is_one_line(tmp_path):
    body = """
        import sys
        print("program.py: error: no such thing", file=sys.stderr, flush=True)
        sys.exit(2)
    """
    lines = []
    with pytest.raises(InputError, match=r"^no such thing$"):
        torchrun([], 1, script(tmp_path, body), lines.append)
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize("processes", [0, -1, 65])
def test_absurd_numbers_of_processes_are_refused(processes):
    with pytest.raises(InputError, match="from 1 to 64"):
        torchrun([], processes, ROOT / "distributed_train.py")


def test_a_missing_script_is_refused(tmp_path):
    with pytest.raises(InputError, match="run this from the workbook's folder"):
        torchrun([], 2, tmp_path / "nothing.py")


def test_an_interrupt_leaves_no_process(tmp_path):
    """The callback stands for a reader who presses Ctrl-C at the first line."""
    body = "import os, time; os.write(1, b'%d\\n' % os.getpid()); time.sleep(300)"  # print() may write a line in two
    found = []

    def interrupt(line):
        if line != STOPPING:
            found.append(int(line))
            if len(found) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        torchrun([], 2, script(tmp_path, body), interrupt)
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pid in found) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(found) == 2
    assert not any(psutil.pid_exists(pid) for pid in found)


def test_a_run_in_the_background_keeps_its_output_until_someone_asks(tmp_path):
    """More output than a pipe holds: the run must not wait for a reader."""
    body = """
        import os, pathlib, sys
        for number in range(2000):
            os.write(1, b"%d %s\\n" % (number, b"x" * 98))
        pathlib.Path(sys.argv[1]).touch()
    """
    done = tmp_path / "done"
    run = Launch([str(done)], 1, script(tmp_path, body))
    deadline = time.monotonic() + 60
    while not done.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert done.exists()
    lines = []
    run.wait(lines.append)
    assert [line.split()[0] for line in lines] == [str(number) for number in range(2000)]


def test_a_run_in_the_background_ends_with_python(tmp_path):
    """As when a notebook's kernel is shut down while the training runs."""
    body = "import os, time; os.write(1, b'%d\\n' % os.getpid()); time.sleep(300)"
    program = f"""
        from pathlib import Path
        from ddp_workbook.distributed.launch import Launch
        run = Launch([], 1, Path({str(script(tmp_path, body))!r}))
        print(run._lines.get(timeout=60), run._process.pid)
    """
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, capture_output=True, text=True, timeout=90
    )
    pids = [int(word) for word in answer.stdout.split()[:2]]  # then it says that it stops them
    assert len(pids) == 2, answer.stderr
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_an_installed_command_finds_the_script_of_the_current_folder(tmp_path, monkeypatch):
    """Python looks in the current folder for scripts and for `python -m`, not for installed commands."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(ROOT))])
    monkeypatch.delitem(sys.modules, "distributed_train", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"distributed_train\.py is not here; run this from the workbook's folder"):
        training_script()
    (tmp_path / "distributed_train.py").write_text("run = 'that of the current folder'")
    assert training_script().run == "that of the current folder"
    del sys.modules["distributed_train"]
