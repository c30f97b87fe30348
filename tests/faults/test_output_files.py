"""What stands in the place of a file that a run will write: found before training, in one line, never waited for."""

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_data
from helper_interrupted_runs import SERIAL, SMALL, in_folder, stop_early, train, use_tiny_model_and_check_every_step
from torch import nn

import distributed_train
from ddp_workbook.config import TrainConfig
from ddp_workbook.distributed.process_group import World
from ddp_workbook.errors import InputError
from ddp_workbook.records.files import load_record, save_record
from ddp_workbook.records.run import RunRecord, load_run, model_path, record_paths
from ddp_workbook.runs.checkpoint import checkpoint_folder, read_checkpoint, saved_checkpoints, write_checkpoint
from ddp_workbook.runs.outputs import RunOutputs, finished_run
from ddp_workbook.runs.resume import newest_complete

posix = pytest.mark.skipif(os.name != "posix", reason="pipes and users as POSIX has them")
PLACES = {
    "model": "c/baseline_mlp_digits.pth",
    "lock": "r/mlp-digits/.baseline.lock",
    "other lock": "c/.baseline_mlp_digits.lock",
    "metrics": "r/mlp-digits/baseline_metrics.json",
    "history": "r/mlp-digits/baseline_history.json",
    "checkpoint": "c/baseline_mlp_digits/step-000010.pt",
    "temporary checkpoint": "c/baseline_mlp_digits/.step-000010.pt.x.tmp",
}


@pytest.fixture
def refusal(refuse, tmp_path, monkeypatch):
    """refusal(*flags): the line with which the script refuses a run in tmp_path, before it trains."""

    def call(*flags):
        monkeypatch.setattr(distributed_train, "train", None)
        places = ["--results-dir", str(tmp_path / "r"), "--checkpoint-dir", str(tmp_path / "c")]
        arguments = ["--recipe", "mlp-digits", "--device", "cpu", *places, *flags]
        code, printed = refuse(distributed_train.main, "distributed_train.py", arguments)
        assert (code, len(printed.splitlines())) == (2, 1), printed
        return printed

    return call


@pytest.mark.parametrize("kind", ["folder", pytest.param("pipe", marks=posix)])
@pytest.mark.parametrize("place", PLACES)
def test_a_folder_or_a_pipe_in_the_place_of_a_file(place, kind, refusal, tmp_path):
    path = tmp_path / PLACES[place]
    path.parent.mkdir(parents=True)
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    for flags in ([], ["--resume"]):
        assert f"cannot read or replace {path} (it is not a file); remove it or rename it" in refusal(*flags)
    assert [one for one in tmp_path.rglob("*") if not one.is_dir()] == ([] if path.is_dir() else [path])


def test_a_folder_in_the_place_of_a_distributed_runs_figure(tmp_path):
    config = in_folder(TrainConfig(model="mlp", dataset="digits"), tmp_path)
    RunOutputs(config, World(launched=True), "gloo").figure.mkdir()
    with pytest.raises(InputError, match=r"training_plots_worldsize_1.png \(it is not a file\)"):
        RunOutputs(config, World(launched=True), "gloo")


def test_a_file_in_the_place_of_a_folder(refusal, tmp_path):
    for name in ("c/baseline_mlp_digits", "r/mlp-digits/tensorboard"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("in the way")
        assert f"cannot write into {tmp_path / name}" in refusal("--tensorboard")
        (tmp_path / name).unlink()


@posix
def test_a_pipe_in_the_place_of_a_model_is_not_waited_for(tmp_path):
    """Where somebody reads it without a run: notebook 03 asks finished_run(), notebook 04 reads the model."""
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(InputError, match="it is not a file"):
        read_checkpoint(tmp_path / "pipe.pth")


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    use_tiny_model_and_check_every_step(monkeypatch.setattr)
    return stop_early(tmp_path)


def test_a_checkpoint_of_60_gb_is_not_read(stopped):
    """It has no blocks on disk, as after a crash of some file systems; the one before it is resumed from."""
    newest, before = saved_checkpoints(checkpoint_folder(stopped, "baseline"))
    with newest.open("r+b") as file:
        file.truncate(60 * 2**30)
    lines = []
    assert newest_complete(newest.parent, lines.append)[0] == before
    assert lines == [f"{newest} is truncated, or not a checkpoint of this version; trying the previous checkpoint"]


def test_a_checkpoint_that_does_not_fit_into_memory(stopped, monkeypatch):
    def fail(path):
        raise MemoryError

    newest, _ = saved_checkpoints(checkpoint_folder(stopped, "baseline"))
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(InputError, match="does not fit into memory"):
        read_checkpoint(newest)


def test_a_checkpoint_with_a_strange_number_is_left_alone(stopped):
    folder = checkpoint_folder(stopped, "baseline")
    (folder / "step-².pt").write_text("x")
    assert len(saved_checkpoints(folder)) == 2


# Files of another user


@pytest.fixture
def nobody():
    """A folder of the user nobody, who this process is until the end of the test."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can become another user")
    folder = Path(tempfile.mkdtemp())
    os.chown(folder, 65534, 65534)
    config = in_folder(TrainConfig(model="mlp", dataset="digits"), folder)
    config.run_dir.mkdir(parents=True)
    for path in folder.rglob("*"):
        os.chown(path, 65534, 65534)
    yield config
    os.seteuid(0)
    shutil.rmtree(folder)


def test_a_lock_file_of_another_user(nobody):
    path = nobody.run_dir / ".baseline.lock"
    path.touch(0o644)
    os.seteuid(65534)
    outputs = RunOutputs(nobody, SERIAL, "gloo")
    with pytest.raises(InputError, match=r"cannot lock .*\.baseline\.lock \(Permission denied\); remove that file, or"):
        outputs.locked().__enter__()
    path.unlink()
    with outputs.locked():
        pass


def test_a_result_of_another_user_in_a_folder_like_tmp(nobody):
    """There everybody can make files, and replace only own ones."""
    (nobody.run_dir / "baseline_metrics.json").touch()
    os.chown(nobody.run_dir, 0, 0)
    nobody.run_dir.chmod(0o1777)
    os.seteuid(65534)
    with pytest.raises(InputError, match=r"baseline_metrics.json belongs to another user; choose another folder"):
        RunOutputs(nobody, SERIAL, "gloo")


# A model and a record that do not belong together


@pytest.fixture
def finished(tmp_path):
    """The configuration of a run that has finished."""
    config = in_folder(replace(SMALL, epochs=1), tmp_path)
    assert train(config, make_data())
    return config


def test_a_model_of_another_run_is_not_taken_for_this_ones(finished):
    assert finished_run(finished, "baseline", 1, make_data())
    write_checkpoint(model_path(finished, "baseline"), finished, make_data().fingerprint, nn.Linear(3, 2).state_dict())
    assert finished_run(finished, "baseline", 1, make_data()) is None


def test_a_history_that_was_changed_or_is_of_another_run_is_refused(finished):
    metrics, history = record_paths(finished.run_dir, "baseline")
    text = history.read_text()
    history.write_text(text.replace("\n", "\r\n"))  # as git may check it out on Windows
    assert load_run(finished.run_dir, "baseline")
    history.write_text(text.replace('"learning_rate": ', '"learning_rate": 1', 1))
    with pytest.raises(InputError, match="was changed, or is of another run"):
        load_run(finished.run_dir, "baseline")
    older = load_record(RunRecord, metrics).model_copy(update={"history_sha256": None, "model_sha256": None})
    save_record(older, metrics)  # of an earlier version, which named no files
    history.write_text(text)
    assert finished_run(finished, "baseline", 1, make_data())
