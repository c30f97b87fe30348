"""Orderly ends of real processes: stopped by a signal, refused by a lock, killed and restarted."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT
from ddp_workbook.endings import Stopped, stop_requests, tell
from ddp_workbook.files import hold
from ddp_workbook.results import hold_folders
from ddp_workbook.resume import newest_whole
from filelock import FileLock

import distributed_train
from ddp_workbook import endings
from ddp_workbook.config import TrainConfig
from ddp_workbook.distributed import LostContact, World
from ddp_workbook.errors import InputError

RUN = ["distributed_train.py", "--recipe", "mlp-digits", "--device", "cpu", "--epochs", "1000"]


def test_ctrl_c_under_torchrun_leaves_a_checkpoint_and_no_process(tmp_path):
    """The ranks have groups of their own, which end with them: a group without a process cannot be found."""
    places = ["--results-dir", str(tmp_path), "--checkpoint-dir", str(tmp_path)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run = subprocess.Popen(
        [*launcher, *RUN, *places], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    said = []
    for line in run.stdout:
        said.append(line)
        if "epoch  2/" in line:
            break
    run.send_signal(signal.SIGINT)
    said += list(run.stdout)  # which ends when the last process that could write has ended
    assert run.wait(60) == 1
    assert sum("stopped by SIGINT after" in line and "--resume" in line for line in said) == 1, said
    assert newest_whole(tmp_path / "distributed_mlp_digits", print)


def test_a_signal_waits_for_the_end_of_a_step():
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests(World(launched=True)) as request:
        assert request.number == 0
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert request.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_ctrl_c_does_not_wait():
    with pytest.raises(KeyboardInterrupt), stop_requests(World()):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("a\nb"), 2, "script: error: a b\n"),
        (Stopped(signal.SIGINT, "epoch 3"), 130, "stopped by SIGINT after epoch 3\n"),
        (Stopped(signal.SIGTERM, "epoch 3"), 143, "stopped by SIGTERM after epoch 3\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_how_each_end_is_told(error, code, line, capsys, monkeypatch):
    assert tell(error, "script", World()) == code
    assert capsys.readouterr().err == line
    monkeypatch.setattr(endings, "SECONDS_FOR_RANK_0", 0)
    assert tell(error, "script", World(rank=1)) == code
    assert capsys.readouterr().err == (line if code == 2 else "")


def test_other_errors_keep_their_traceback(capsys):
    assert tell(LostContact("rank 1 of 2 lost contact"), "script", World(rank=1)) == 1
    assert capsys.readouterr().err == "script: rank 1 of 2 lost contact\n"
    with pytest.raises(RuntimeError, match="size mismatch"):
        tell(RuntimeError("size mismatch"), "script", World())


def test_the_second_run_is_told_who_has_the_folder(tmp_path, monkeypatch, refuse):
    places = ["--results-dir", str(tmp_path / "r"), "--checkpoint-dir", str(tmp_path / "c")]
    config = TrainConfig(model="mlp", dataset="digits", results_dir=tmp_path / "r", checkpoint_dir=tmp_path / "c")
    config.run_dir.mkdir(parents=True)
    config.checkpoint_dir.mkdir()
    with hold_folders(config, "baseline", World()):
        code, said = refuse(distributed_train.main, "distributed_train.py", ["--recipe", "mlp-digits", *places])
    assert code == 2
    assert f"{config.run_dir} is in use by another run (process {os.getpid()}, since 2" in said
    assert "--results-dir DIR --checkpoint-dir DIR" in said
    assert len(said.splitlines()) == 1
    with hold_folders(config, "baseline", World()), hold_folders(config, "distributed", World()):
        pass  # free again, and the two kinds have files of their own


def test_a_shared_checkpoint_folder_is_noticed_too(tmp_path):
    (tmp_path / "c").mkdir()
    first, second = (TrainConfig(results_dir=tmp_path / name, checkpoint_dir=tmp_path / "c") for name in "ab")
    for config in (first, second):
        config.run_dir.mkdir(parents=True)
    refused = pytest.raises(InputError, match="/c is in use")
    with hold_folders(first, "baseline", World()), refused, hold_folders(second, "baseline", World()):
        pass
    with hold_folders(second, "baseline", World()):
        pass


def test_only_rank_0_holds(tmp_path):
    config = TrainConfig(results_dir=tmp_path, checkpoint_dir=tmp_path)
    config.run_dir.mkdir(parents=True)
    with hold_folders(config, "distributed", World(0, 2)), hold_folders(config, "distributed", World(1, 2)):
        pass


def test_a_holder_that_died_holds_nothing(tmp_path):
    script = "import os, sys, pathlib; from ddp_workbook.files import hold\n"
    script += "with hold(pathlib.Path(sys.argv[1]), ''): os._exit(9)"
    assert (
        subprocess.run([sys.executable, "-c", script, str(tmp_path / "x.lock")], cwd=ROOT, check=False).returncode == 9
    )
    assert (tmp_path / "x.holder").exists()
    with hold(tmp_path / "x.lock", ""):
        pass
    assert not (tmp_path / "x.holder").exists()


@pytest.mark.parametrize("content", [None, "", "[1]", "{}", '["a", "b"]'])
def test_an_unreadable_holder_does_not_matter(tmp_path, content):
    if content is not None:
        (tmp_path / "x.holder").write_text(content)
    refused = pytest.raises(InputError, match="in use by another run")
    with FileLock(tmp_path / "x.lock"), refused, hold(tmp_path / "x.lock", ""):
        pass
