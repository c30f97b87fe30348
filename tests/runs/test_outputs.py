"""The output files of a run: locked while it runs, written in an order, and found again only when they fit."""

import os
from dataclasses import replace

import pytest
import torch
from conftest import make_data, run_on_ranks
from helper_interrupted_runs import CPU, SERIAL, SMALL, in_folder, stop_early, train
from helper_records import make_run
from torch import nn

import distributed_train
from ddp_workbook.config import CheckpointOptions, TrainConfig
from ddp_workbook.devices import choose_device
from ddp_workbook.distributed.process_group import World
from ddp_workbook.errors import InputError
from ddp_workbook.records.files import save_record
from ddp_workbook.records.run import load_run, record_paths
from ddp_workbook.runs import outputs, stopping
from ddp_workbook.runs.checkpoint import model_path, read_checkpoint, write_checkpoint
from ddp_workbook.runs.outputs import RunOutputs, finished_run
from ddp_workbook.training.loader import Normalize, TrainLoader
from ddp_workbook.training.loop import fit
from ddp_workbook.training.models import build_model
from ddp_workbook.training.state import build_state

DISTRIBUTED = World(launched=True)
BACKEND = "gloo"


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "SECONDS_BETWEEN_CHECKS", 0)
    return stop_early(tmp_path)


# Locks


def test_the_second_run_learns_which_process_has_the_folder(tmp_path, refuse):
    places = ["--results-dir", str(tmp_path / "r"), "--checkpoint-dir", str(tmp_path / "c")]
    config = TrainConfig(model="mlp", dataset="digits", results_dir=tmp_path / "r", checkpoint_dir=tmp_path / "c")
    with RunOutputs(config, SERIAL, BACKEND).locked():
        code, printed = refuse(distributed_train.main, "distributed_train.py", ["--recipe", "mlp-digits", *places])
    assert code == 2
    assert f"{config.run_dir} is in use by another run (process {os.getpid()}, since 2" in printed
    assert "--results-dir DIR --checkpoint-dir DIR" in printed
    assert len(printed.splitlines()) == 1
    with RunOutputs(config, SERIAL, BACKEND).locked(), RunOutputs(config, DISTRIBUTED, BACKEND).locked():
        pass  # free again, and each kind has its own files


def test_a_shared_checkpoint_folder_is_noticed_too(tmp_path):
    first, second = (TrainConfig(results_dir=tmp_path / name, checkpoint_dir=tmp_path / "c") for name in "ab")
    refused = pytest.raises(InputError, match="/c is in use")
    with RunOutputs(first, SERIAL, BACKEND).locked(), refused, RunOutputs(second, SERIAL, BACKEND).locked():
        pass
    with RunOutputs(second, SERIAL, BACKEND).locked():
        pass


def test_only_rank_0_locks(tmp_path):
    config = TrainConfig(results_dir=tmp_path, checkpoint_dir=tmp_path)
    first, second = (World(rank, 2, rank, 2, launched=True) for rank in range(2))
    with RunOutputs(config, first, BACKEND).locked(), RunOutputs(config, second, BACKEND).locked():
        pass


@pytest.mark.parametrize("folder", ["results", "checkpoints"])
def test_a_folder_that_cannot_be_written_is_named(config, tmp_path, folder):
    (tmp_path / folder).write_text("a file in the way")
    with pytest.raises(InputError, match=f"cannot write into {tmp_path / folder}.*choose a writable folder"):
        RunOutputs(config, SERIAL, BACKEND)


def test_folders_that_can_be_written_are_created_and_stay_empty(config):
    RunOutputs(config, SERIAL, BACKEND)
    assert list(config.run_dir.iterdir()) == list(config.checkpoint_dir.iterdir()) == []


# A run that has finished


def save_run_files(folder, data):
    run, history = make_run(dataset=data.info())
    metrics, epochs = record_paths(folder, "baseline")
    save_record(run, metrics)
    save_record(history, epochs)
    return run, history


def test_a_finished_run_is_found_again_only_with_its_settings_and_a_complete_model(tmp_path):
    run, data = make_run()[0], replace(make_data(train=800, test=200, classes=2), name="digits")
    config = replace(run.config, results_dir=tmp_path, checkpoint_dir=tmp_path)
    assert finished_run(config, "baseline", 1, data) is None
    saved = save_run_files(config.run_dir, data)
    assert finished_run(config, "baseline", 1, data) is None  # its model is missing
    path = model_path(config, "baseline")
    write_checkpoint(path, config, data.fingerprint, nn.Linear(3, 2).state_dict())
    complete = path.read_bytes()
    for incomplete in (b"", complete[:-1]):
        path.write_bytes(incomplete)
        assert finished_run(config, "baseline", 1, data) is None
    path.write_bytes(complete)
    assert finished_run(config, "baseline", 1, data) == saved
    assert finished_run(replace(config, data_dir=tmp_path / "elsewhere"), "baseline", 1, data) == saved
    on_this_device = choose_device("auto").type == run.environment.device
    assert (finished_run(replace(config, device="auto"), "baseline", 1, data) is not None) == on_this_device
    assert finished_run(config, "baseline", 2, data) is None
    assert finished_run(config, "distributed", 1, data) is None
    assert finished_run(replace(config, lr=1.0), "baseline", 1, data) is None
    assert finished_run(config, "baseline", 1, replace(data, classes=("other", "names"))) is None


def test_a_finished_run_is_not_trained_again_by_resume(tmp_path, capsys):
    """As when a scheduler starts the same job twice."""
    config = in_folder(
        replace(SMALL, dataset="digits", image_size=28, epochs=1, batch_size=64, base_batch_size=64), tmp_path
    )
    assert distributed_train.run(config, CheckpointOptions(), SERIAL)
    before = model_path(config, "baseline").read_bytes()
    capsys.readouterr()
    assert not distributed_train.run(config, CheckpointOptions(resume=True), SERIAL)
    assert capsys.readouterr().out.startswith("this run finished at ")
    assert model_path(config, "baseline").read_bytes() == before
    assert distributed_train.run(replace(config, seed=1), CheckpointOptions(resume=True), SERIAL)
    assert "starting from scratch" in capsys.readouterr().out
    assert model_path(config, "baseline").read_bytes() != before


def test_a_run_says_which_earlier_one_it_replaces(stopped, capsys):
    capsys.readouterr()
    assert not RunOutputs(stopped, SERIAL, BACKEND).is_finished(False, make_data())
    assert capsys.readouterr().out == ""
    assert train(stopped, make_data())
    earlier, _ = finished_run(stopped, "baseline", 1, make_data())
    capsys.readouterr()
    assert not RunOutputs(replace(stopped, lr=0.2), SERIAL, BACKEND).is_finished(False, make_data())
    line = f"replaces that of {earlier.finished_at} (1 process(es), {earlier.test_accuracy:.2%}) in {stopped.run_dir}"
    assert line in capsys.readouterr().out


def test_an_interrupted_run_after_a_finished_one_is_resumed(stopped, capsys):
    """Both have the same settings; the one that was started last counts."""
    assert train(stopped, make_data())
    assert not train(stopped, make_data(), stop_at=8, checkpoint_every=4)
    assert finished_run(stopped, "baseline", 1, make_data())
    assert not RunOutputs(stopped, SERIAL, BACKEND).is_finished(True, make_data())
    assert "finished at" not in capsys.readouterr().out
    assert train(stopped, make_data(), resume=True)
    assert RunOutputs(stopped, SERIAL, BACKEND).is_finished(True, make_data())


# The files of a run


@pytest.fixture
def trained(tmp_path):
    """State, last evaluation, data and configuration of a run of two epochs whose training has just ended."""
    config, data = in_folder(replace(SMALL, epochs=2, threads=1), tmp_path), make_data()
    state, loader = build_state(config, data, SERIAL, CPU), TrainLoader(data, config, SERIAL, CPU)
    return state, fit(state, loader, data, config, SERIAL), data, config


def test_the_records_follow_from_the_training_state(trained):
    state, tested, data, config = trained
    record = RunOutputs(config, SERIAL, BACKEND).save(state, tested, data)
    run, history = load_run(config.run_dir, "baseline")
    assert record == run
    assert history.epochs == state.history
    assert run.dataset == data.info()
    assert (run.kind, run.config, run.world.backend, run.world.processes) == ("baseline", config, None, 1)
    assert (run.world.global_batch, run.world.threads_per_process, run.world.precision) == (4, 1, "fp32")
    assert run.confusion == tested.confusion.tolist()
    assert run.test_accuracy == tested.confusion.diagonal().sum().item() / 21 == history.epochs[-1].test_accuracy
    seconds = [epoch.train_seconds for epoch in history.epochs]
    assert run.train_seconds == sum(seconds)
    assert run.images_per_second == pytest.approx(2 * 48 / sum(seconds))
    assert run.parameters == sum(weight.numel() for weight in state.model.parameters())
    content = read_checkpoint(model_path(config, "baseline"))
    assert (content["config"], content["fingerprint"], content["training"]) == (config, data.fingerprint, None)
    assert all(torch.equal(value, content["model"][name]) for name, value in state.model.state_dict().items())


def train_on_ranks(rank, ranks, config, test_images):
    world = World(rank, ranks, rank, ranks, launched=True)
    train(config, make_data(test=test_images), world)


@pytest.mark.parametrize(("ranks", "test_images"), [(1, 21), (2, 604), (3, 20), (3, 2)])
def test_the_record_says_of_every_image_what_the_saved_model_says(ranks, test_images, tmp_path):
    """Whatever the number of ranks: equal shards or not, and even where a rank has no image."""
    config = in_folder(replace(SMALL, dropout=0.0, epochs=1), tmp_path)
    run_on_ranks(train_on_ranks, ranks, ranks, config, test_images)
    run, _ = load_run(config.run_dir, "distributed")
    data = make_data(test=test_images)
    model = build_model(config, 3).eval()
    model.load_state_dict(read_checkpoint(model_path(config, "distributed"))["model"])
    with torch.no_grad():
        predicted = model(Normalize(data, CPU)(data.test.images)).argmax(1)
    assert run.correct_bits == (predicted == data.test.labels).tolist()
    assert 0 < sum(run.correct_bits) < test_images or test_images == 2


@pytest.mark.parametrize("fails", ["write_checkpoint", "save_text", "save_record"])
def test_an_earlier_run_stays_complete_when_writing_fails(fails, trained, monkeypatch):
    """Model, history and metrics are written in this order; tests/faults fails at every single operation."""
    *ended, config = trained
    files = RunOutputs(config, SERIAL, BACKEND)
    assert files.save(*ended)
    earlier = finished_run(config, "baseline", 1, ended[-1])
    assert earlier
    present = set(config.results_dir.parent.rglob("*"))

    def fail(*arguments):
        raise InputError("no space left")

    epoch = ended[0].history[-1]
    slower = {"train_seconds": 2 * epoch.train_seconds, "images_per_second": epoch.images_per_second / 2}
    ended[0].history[-1] = epoch.model_copy(update=slower)  # another run
    monkeypatch.setattr(outputs, fails, fail)
    with pytest.raises(InputError, match="no space left"):
        files.save(*ended)
    assert finished_run(config, "baseline", 1, ended[-1]) == earlier
    assert set(config.results_dir.parent.rglob("*")) == present
