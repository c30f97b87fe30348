"""Real runs that are killed, stopped or launched again and again; slow, so `make test-faults` runs them.

FAULT_TRIES sets the number of tries (of each kind), FAULT_SEED the random moments.
"""

import os
import random
import signal
import statistics
import subprocess
import sys
import time

import psutil
import pytest
import torch
from conftest import ROOT
from helper_tries import tries

from ddp_workbook.records.run import load_run
from ddp_workbook.runs.checkpoint import read_checkpoint
from ddp_workbook.runs.resume import newest_complete

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
RUN = ["--recipe", "mlp-digits", "--epochs", "16", "--device", "cpu", "--batch-size", "16"]
BEGUN, DONE = "mlp-digits on cpu", "test accuracy"
MOST_SECONDS = 120
DRAWS = random.Random(int(os.environ.get("FAULT_SEED", "0")))


# distributed_train.py, on whose rank 0 a callback also saves the random state after the last epoch
SCRIPT = """
import os, pathlib, torch
import distributed_train

class SaveRandomState:
    def after_step(self, state):
        pass

    def after_epoch(self, state):
        if state.finished:
            torch.save(torch.get_rng_state(), pathlib.Path(__file__).with_name("random_state.pt"))

distributed_train.main(callbacks=[SaveRandomState()] if os.environ.get("RANK", "0") == "0" else [])
"""


def start(folder, script, launcher, *flags):
    """The process of a training script in the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "script.py").write_text(script)
    return subprocess.Popen(
        [*launcher, str(folder / "script.py"), *RUN, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


class Run:
    """A run in its own folder, whose lines can be waited for."""

    def __init__(self, folder, launcher, *flags):
        self.folder, self.kind = folder, "baseline" if launcher == [sys.executable] else "distributed"
        places = ["--results-dir", str(folder / "results"), "--checkpoint-dir", str(folder / "checkpoints")]
        self.process = start(folder, SCRIPT, launcher, *places, *flags)
        self.lines = []

    def wait_for(self, *words):
        """The moment when a line with one of the words came; None when the output ended without."""
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if any(word in line for word in words):
                return time.perf_counter()
        return None

    def family(self):
        return [self.process, *psutil.Process(self.process.pid).children(recursive=True)]

    def rank(self, number):
        """The process of this rank."""
        return next(one for one in self.family()[1:] if one.environ().get("RANK") == str(number))

    def end(self):
        """Its exit code, once it has ended."""
        self.wait_for("no line has these words")
        return self.process.wait(MOST_SECONDS)

    def result(self):
        """Everything that must be the same, bit for bit."""
        content = read_checkpoint(self.folder / "checkpoints" / f"{self.kind}_mlp_digits.pth")
        history = load_run(self.folder / "results" / "mlp-digits", self.kind)[1].epochs
        numbers = [(e.train_loss, e.train_accuracy, e.test_loss, e.test_accuracy) for e in history]
        return content["model"], numbers, torch.load(self.folder / "random_state.pt", weights_only=True)


def same(first, second):
    (weights, numbers, draws), (others, other_numbers, other_draws) = first, second
    equal = all(torch.equal(weights[name], others[name]) for name in weights)
    return equal and numbers == other_numbers and torch.equal(draws, other_draws)


def undisturbed(folder, launcher, *flags):
    """The seconds and the result of a run that nobody disturbs."""
    run = Run(folder, launcher, *flags)
    begun = run.wait_for(BEGUN)
    done = run.wait_for(DONE)
    assert run.end() == 0, run.lines
    return done - begun, run.result()


@pytest.mark.parametrize(
    ("options", "in_full"),
    [((), 50), (("--balance", "1:2"), 20), (("--shard", "optimizer"), 20), (("--shard", "full"), 20)],
    ids=["DDP", "balance", "ZeRO-1", "FSDP"],
)
def test_a_killed_rank_costs_the_steps_since_the_last_checkpoint(options, in_full, tmp_path):
    flags = ("--checkpoint-every", "20", *options)
    seconds, expected = undisturbed(tmp_path / "plain", TORCHRUN, *flags)
    recovery, exact = [], 0
    for number in range(1, tries(in_full) + 1):
        run = Run(tmp_path / str(number), [*TORCHRUN, "--max-restarts=3"], *flags)
        run.wait_for(BEGUN)
        victim = run.rank(DRAWS.randrange(2))
        time.sleep(DRAWS.uniform(0, 0.9 * seconds))
        victim.kill()
        killed = time.perf_counter()
        recovery.append(run.wait_for("resuming after", "starting from scratch") - killed)
        assert run.end() == 0, run.lines
        exact += same(run.result(), expected)
    median, worst = statistics.median(recovery), max(recovery)
    print(f"\n{' '.join(options) or 'DDP'}, killed {len(recovery)}: {exact} bit-identical; recovery", end=" ")
    print(f"median {median:.1f} s, worst {worst:.1f} s")
    print("recovery:", *(f"{one:.2f}" for one in recovery))
    assert exact == len(recovery)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if os.name == "posix" else [])])
def test_a_signal_leaves_a_checkpoint_and_no_process(number, tmp_path):
    """To the script without torchrun, and to torchrun, in turn."""
    launchers = [[sys.executable], TORCHRUN]
    plain = [undisturbed(tmp_path / f"plain {i}", launcher) for i, launcher in enumerate(launchers)]
    waits, exact, finished = [], 0, 0
    for attempt in range(1, tries(20) + 1):
        launcher, (seconds, expected) = launchers[attempt % 2], plain[attempt % 2]
        run = Run(tmp_path / str(attempt), launcher)
        run.wait_for(BEGUN)
        family = run.family()
        time.sleep(DRAWS.uniform(0, 0.9 * seconds))
        run.process.send_signal(number)
        sent = time.perf_counter()
        code = run.end()
        waits.append(time.perf_counter() - sent)
        assert not [one for one in family[1:] if one.is_running()], "a process was left behind"
        if any(DONE in line for line in run.lines):  # the signal came too late to stop it
            finished += 1
        else:
            printed = "\n".join(run.lines)
            assert code == (128 + number if launcher == [sys.executable] else 1), printed
            assert printed.count("to resume: the same command with --resume") == 1, printed
            found = newest_complete(run.folder / "checkpoints" / f"{run.kind}_mlp_digits", print)
            assert found, run.lines
            again = Run(run.folder, launcher, "--resume")
            assert again.wait_for("resuming after"), again.lines
            assert again.end() == 0, again.lines
        exact += same(run.result(), expected)
    print(f"\n{number.name}: {len(waits)} tries, {finished} had finished, {exact} bit-identical;", end=" ")
    print(f"ended after {statistics.median(waits):.1f} s (median), {max(waits):.1f} s (worst)")
    assert exact == len(waits)


def test_launches_in_a_row_all_end_with_code_0(tmp_path):
    seconds = []
    for _ in range(tries(100)):
        begun = time.perf_counter()
        run = Run(tmp_path, TORCHRUN, "--epochs", "1")
        assert run.end() == 0, run.lines
        seconds.append(time.perf_counter() - begun)
    print(
        f"\n{len(seconds)} launches, all with code 0; {statistics.median(seconds):.1f} s (median), {max(seconds):.1f} s"
    )


SPOILED = """
import os, runpy
from ddp_workbook.training import loop
real, taken = loop.train_step, []

def fail(*arguments):
    taken.append(1)
    return 1 / (len(taken) < 50) if os.environ["RANK"] == "1" and len(taken) == 50 else real(*arguments)

loop.train_step = fail
runpy.run_path("distributed_train.py", run_name="__main__")
"""


def test_a_rank_that_raises_ends_the_others_and_its_error_is_shown_once(tmp_path):
    places = ["--results-dir", str(tmp_path / "r"), "--checkpoint-dir", str(tmp_path / "c")]
    waits = []
    for _ in range(tries(10)):
        run = start(tmp_path, SPOILED, TORCHRUN, *places)
        lines, moment = [], None
        for line in run.stdout:
            lines.append(line)
            moment = moment or (time.perf_counter() if "ZeroDivisionError" in line else None)
        assert run.wait(MOST_SECONDS) == 1
        waits.append(time.perf_counter() - moment)
        shown = [line for line in lines if line.startswith("[rank")]  # a traceback; torchrun's report comes after it
        assert sum("ZeroDivisionError" in line for line in shown) == 1, "".join(lines)
        assert all(line.startswith("[rank1]") for line in shown), "".join(lines)
    print(f"\na rank raised {len(waits)} times; all had ended {max(waits):.1f} s later at the latest")
