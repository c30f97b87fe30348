"""Output that nobody can read any more, and standard streams that are closed from the start."""

import io
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, make_data, run_on_ranks
from helper_interrupted_runs import NO_DRAWS, SMALL, in_folder, train, use_tiny_model_and_check_every_step

import distributed_train
from ddp_workbook.config import TrainConfig
from ddp_workbook.distributed.process_group import World
from ddp_workbook.errors import InputError
from ddp_workbook.records.run import load_run, model_path
from ddp_workbook.runs.checkpoint import checkpoint_folder, read_seal, saved_checkpoints
from ddp_workbook.runs.stopping import LOST_OUTPUT, Stopped, exit_code_for
from ddp_workbook.runs.streams import open_standard_streams

posix = pytest.mark.skipif(os.name != "posix", reason="pipes and devices as POSIX has them")


def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def full_device():
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    return Path("/dev/full").open("w")


class LostTerminal(io.StringIO):
    """A terminal whose window was closed; it has no file number that could lead to the null device."""

    def isatty(self):
        return True

    def write(self, text):
        raise OSError(5, "Input/output error")


@posix
@pytest.mark.parametrize("lost", [closed_pipe, full_device, LostTerminal])
def test_training_ends_with_a_checkpoint(lost, tmp_path, monkeypatch):
    use_tiny_model_and_check_every_step(monkeypatch.setattr)
    config = in_folder(replace(SMALL, epochs=1), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", lost())
        assert train(config, make_data()) is None
        sys.stdout.close()  # as Python does at its end
    assert [path.name for path in saved_checkpoints(checkpoint_folder(config, "baseline"))] == ["step-000001.pt"]
    assert train(config, make_data(), resume=True)


def lose_output_of_rank_0(rank, ranks, path):
    use_tiny_model_and_check_every_step()
    if rank == 0:
        sys.stdout = closed_pipe()
    return train(in_folder(NO_DRAWS, path), make_data(), World(rank, ranks, rank, ranks, launched=True))


@posix
def test_all_ranks_end_together(tmp_path):
    """None of them loses the connection to another."""
    assert run_on_ranks(lose_output_of_rank_0, 2, 2, tmp_path) == [None, None]
    assert saved_checkpoints(checkpoint_folder(in_folder(NO_DRAWS, tmp_path), "distributed"))


# Imports the script once; each case is a fork of it that gets other standard streams, and ends as a program does.
FORKS = """
import os, stat, sys
import sklearn.datasets, torch._dynamo  # which a run imports on its way
import distributed_train

def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return writer

folder, *flags = sys.argv[1:]
full = lambda: os.open("/dev/full", os.O_WRONLY)
errors = lambda: os.open(f"{folder}/errors", os.O_WRONLY | os.O_CREAT)
cases = {
    "pipe": {1: closed_pipe, 2: errors}, "full": {1: full, 2: full}, "closed": {0: None, 1: None, 2: None},
}
for case, streams in cases.items():
    sys.stdout.flush()
    child = os.fork()
    if not child:
        for number, replacement in streams.items():
            if replacement:
                os.dup2(replacement(), number)
            else:
                os.close(number)
                setattr(sys, ("stdin", "stdout", "stderr")[number], None)  # as Python starts then
        places = [f"--{name}-dir={folder}/{case} {name}" for name in ("results", "checkpoint")]
        distributed_train.main([*flags, *places, f"--epochs={1 if case == 'closed' else 1000}"])
        assert all(stat.S_ISCHR(os.fstat(number).st_mode) for number in range(3)), "a file got a stream's number"
        break
    print(case, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), sep=": ", flush=True)
"""


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_what_a_program_does_with_such_streams(tmp_path):
    """The exit code is kept when Python flushes its buffers; a stream that the caller closed on purpose is no loss."""
    flags = ["--recipe", "mlp-digits", "--device", "cpu", "--threads", "1"]
    command = [sys.executable, "-c", FORKS, str(tmp_path), *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=200)
    codes = {"pipe": 141, "full": 141, "closed": 0}
    assert done.stdout.splitlines() == [f"{case}: {code}" for case, code in codes.items()], done.stderr
    assert done.stderr == ""
    for case, code in codes.items():
        config = TrainConfig(
            model="mlp", results_dir=tmp_path / f"{case} results", checkpoint_dir=tmp_path / f"{case} checkpoint",
            dataset="digits",
        )  # fmt: skip
        if code:
            assert saved_checkpoints(checkpoint_folder(config, "baseline"))
        else:
            run, _ = load_run(config.run_dir, "baseline")
            assert read_seal(model_path(config, "baseline")) == run.model_sha256
    [line] = (tmp_path / "errors").read_text().splitlines()
    assert line.startswith("stopped by lost output (stdout is a closed pipe or a full device) after step ")
    assert line.endswith("; to resume: the same command with --resume")


def test_a_lost_line_on_stderr_changes_no_exit_code(monkeypatch):
    monkeypatch.setattr(sys, "stderr", LostTerminal())
    assert exit_code_for(InputError("x"), "script", World()) == 2
    assert exit_code_for(Stopped(LOST_OUTPUT, "step 1"), "script", World()) == 141


def test_a_name_that_the_output_cannot_encode_is_printed_as_escapes(monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, "ascii"))
    open_standard_streams()
    print("größe", flush=True)
    assert buffer.getvalue() == b"gr\\xf6\\xdfe" + os.linesep.encode()


def test_help_that_nobody_reads_to_its_end_is_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", LostTerminal())
    with suppress(SystemExit):  # torch's @record returns where the code is 0
        distributed_train.main(["--help"])
