"""Commands that get a stop signal end in one line, with its exit code; nothing is half-written or left running."""

import os
import random
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from conftest import ROOT
from helper_bad_invocations import finish_course
from helper_small_course import TRAINING, make_small_course, start_command, wait_for
from helper_tries import tries

from ddp_workbook import cli
from ddp_workbook.course import runner
from ddp_workbook.course.interrupts import STOP_SIGNALS, Interrupted, restore, stop_handlers, stop_signals_raise
from ddp_workbook.course.runner import COURSE, NotebookError, run_notebook
from ddp_workbook.errors import InputError
from ddp_workbook.report.build import build_report

DRAWS = random.Random(int(os.environ.get("FAULT_SEED", "0")))
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")


def end(process, number):
    """Send the signal: exit code, stdout and stderr; no process is left."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    return process.returncode, out, err


@posix
def test_the_runner_ends_by_a_signal_in_order(tmp_path, refuse, monkeypatch):
    """The cell is interrupted, as the stop button does it; the earlier copy of its notebook is kept."""
    runs = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        folder = tmp_path / number.name
        folder.mkdir()
        make_small_course(folder, "1 + 1", TRAINING)
        copies = folder / "results" / "mlp-digits" / "notebooks"
        copies.mkdir(parents=True)
        (copies / COURSE[1]).write_text("an earlier copy")
        runs[number] = folder, copies, start_command(folder, "run", "--recipe", "mlp-digits")
    for number, (folder, copies, process) in runs.items():
        wait_for(folder / "begun")
        if number == signal.SIGTERM:
            monkeypatch.chdir(folder)
            code, line = refuse(cli.main, "ddp-workbook", ["run", "--recipe", "cnn-digits"])
            assert (code, len(line.splitlines())) == (2, 1)
            assert f"results is in use by another run (process {process.pid}, since " in line
        code, out, err = end(process, number)
        assert code == 128 + number
        assert err == (
            f"stopped by {number.name} in 02_baseline_training, cell 4 of 4; to resume: the same command, which does "
            f"not repeat a training that has finished\n"
        )
        assert "Traceback" not in out
        assert (folder / "checkpoint").exists()
        assert sorted(path.name for path in copies.iterdir()) == list(COURSE[:2])
        assert (copies / COURSE[1]).read_text() == "an earlier copy"
        assert nbformat.read(copies / COURSE[0], as_version=4).cells[-1].outputs


@posix
def test_a_second_signal_does_not_wait_for_the_cell(tmp_path):
    make_small_course(tmp_path, "import time\nopen('begun', 'w')\nwhile True:\n    try:\n        time.sleep(9)\n"
                                "    except KeyboardInterrupt:\n        open('heard', 'w')")  # fmt: skip
    process = start_command(tmp_path, "run", "--recipe", "mlp-digits")
    wait_for(tmp_path / "begun")
    process.send_signal(signal.SIGINT)
    wait_for(tmp_path / "heard")
    code, _, err = end(process, signal.SIGINT)
    assert code == 130
    assert err.startswith("stopped by SIGINT in 02_baseline_training, cell 3 of 3; "), err


@posix
def test_a_runner_whose_output_nobody_reads_ends_as_by_sigterm(tmp_path):
    make_small_course(tmp_path, TRAINING)
    process = start_command(tmp_path, "run", "--recipe", "mlp-digits")
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(60) == 143
    assert "Traceback" not in err
    assert "stopped by SIGTERM in 01_environment_setup, " in err
    assert not (tmp_path / "begun").exists()


@posix
def test_the_runner_ends_by_a_signal_at_any_moment(tmp_path):
    """While kernels start and end, and between short cells, too."""
    make_small_course(tmp_path, *["1 + 1"] * 20, TRAINING)
    for _ in range(tries(20)):
        process, number = start_command(tmp_path, "run", "--recipe", "mlp-digits"), DRAWS.choice(STOP_SIGNALS)
        assert "01_environment_setup" in process.stdout.readline()
        time.sleep(DRAWS.uniform(0, 3))
        code, _, err = end(process, number)
        assert code == 128 + number
        assert "Traceback" not in err  # a kernel may say something of its own: that it was interrupted very early
        assert [": the same command" in line for line in err.splitlines() if line.startswith("stopped by")] == [True]


def test_a_retraining_that_is_stopped_goes_on_without_the_flag(tmp_path, monkeypatch):
    def stopped(*arguments):
        raise Interrupted(signal.SIGTERM, "02_baseline_training, cell 3 of 17")

    make_small_course(tmp_path, "1 + 1")
    monkeypatch.setattr(runner, "run_notebook", stopped)
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM in .*; to resume: the same command without --retrain"):
        runner.run_course(tmp_path, tmp_path / "out", {"RETRAIN": True})


REFUSED = """
from ddp_workbook.errors import InputError
raise InputError("step-000010.pt belongs to a run with --epochs 3, this one has 2; ddp-workbook run: --retrain")
"""


def test_what_a_cell_refuses_the_runner_refuses(tmp_path):
    make_small_course(tmp_path, REFUSED)
    target = tmp_path / "out.ipynb"
    with pytest.raises(InputError, match=r"02_baseline_training.ipynb: step-000010.pt .* --retrain \(see .*out.ipynb"):
        run_notebook(tmp_path / COURSE[1], target, {}, started=0)
    assert "step-000010.pt belongs" in target.read_text()


def test_a_kernel_that_dies_is_named(tmp_path):
    make_small_course(tmp_path, "import os\nos._exit(9)")
    with pytest.raises(NotebookError, match=r"02_baseline_training.ipynb failed: DeadKernelError: Kernel died"):
        run_notebook(tmp_path / COURSE[1], tmp_path / "out.ipynb", {}, started=0)


def test_retrain_is_the_notebooks_own_parameter(refuse, monkeypatch):
    """A resume that was refused names this flag."""

    def take(folder, output_dir, parameters):
        raise InputError(f"parameters: {parameters}")

    monkeypatch.setattr(runner, "run_course", take)
    code, line = refuse(cli.main, "ddp-workbook", ["run", "--recipe", "mlp-digits", "--retrain"])
    assert code == 2
    assert "'RETRAIN': True" in line
    assert all("RETRAIN" in (ROOT / name).read_text() for name in COURSE[1:3])
    assert "'RETRAIN'" not in refuse(cli.main, "ddp-workbook", ["run", "--recipe", "mlp-digits"])[1]


@posix
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signals_raise_in_commands_and_stay_ignored_where_they_were(number):
    before = stop_handlers()
    try:
        with pytest.raises(Interrupted) as stop, stop_signals_raise():
            os.kill(os.getpid(), number)
            time.sleep(10)
        assert stop.value.number == number
        assert set(stop_handlers().values()) == {signal.SIG_IGN}  # the program ends: once is enough
        restore(before)
        signal.signal(number, signal.SIG_IGN)
        with stop_signals_raise():
            os.kill(os.getpid(), number)
    finally:
        restore(before)
    assert stop_handlers() == before


# a build that takes long
BUILD = """
import time, typst
from ddp_workbook import cli
real = typst.compile

def slow(*arguments, **options):
    print("typesetting", flush=True)
    time.sleep(30)
    return real(*arguments, **options)

typst.compile = slow
cli.main()
"""


@posix
def test_a_report_build_that_is_stopped_leaves_the_earlier_report(tmp_path):
    run_dir = tmp_path / "results" / "resnet50-digits"
    finish_course(run_dir)
    earlier = build_report(run_dir, ROOT / "report.toml").read_bytes()
    (tmp_path / "report.toml").write_bytes((ROOT / "report.toml").read_bytes())
    before = sorted(tmp_path.rglob("*"))
    builds = {
        number: subprocess.Popen(
            [sys.executable, "-c", BUILD, "report"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        )
        for number in (signal.SIGTERM, signal.SIGKILL)
    }  # fmt: skip
    for number, process in builds.items():
        assert process.stdout.readline() == "typesetting\n"
        code, _, err = end(process, number)
        assert (code, err) == ((143, "interrupted\n") if number == signal.SIGTERM else (-9, ""))
    assert (run_dir / "report.pdf").read_bytes() == earlier
    assert sorted(tmp_path.rglob("*")) == before
