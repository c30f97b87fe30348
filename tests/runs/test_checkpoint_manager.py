"""What the checkpoint manager writes, what it refuses to write, what it keeps, and when."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import make_data, run_on_ranks
from helper_interrupted_runs import (
    CPU,
    NO_DRAWS,
    SERIAL,
    SMALL,
    in_folder,
    same,
    stop_early,
    train,
    use_tiny_model_and_check_every_step,
)

from ddp_workbook.config import CheckpointOptions
from ddp_workbook.distributed.process_group import World
from ddp_workbook.errors import InputError
from ddp_workbook.records.run import load_run
from ddp_workbook.runs import resume, stopping
from ddp_workbook.runs.checkpoint import (
    checkpoint_folder,
    model_path,
    read_checkpoint,
    saved_checkpoints,
    write_checkpoint,
)
from ddp_workbook.runs.resume import CheckpointManager
from ddp_workbook.training import loop
from ddp_workbook.training import state as training_state
from ddp_workbook.training.loader import TrainLoader
from ddp_workbook.training.state import build_state


@pytest.fixture(autouse=True)
def tiny_model_and_checks_at_every_step(monkeypatch):
    use_tiny_model_and_check_every_step(monkeypatch.setattr)


@pytest.fixture
def stopped(tmp_path):
    return stop_early(tmp_path)


def checkpoints(config, kind="baseline"):
    return saved_checkpoints(checkpoint_folder(config, kind))


def test_a_checkpoint_holds_everything_that_training_changes(tmp_path):
    config, data = in_folder(replace(SMALL, model="resnet50", dropout=0.0), tmp_path), make_data()
    state, loader = build_state(config, data, SERIAL, CPU), TrainLoader(data, config, SERIAL, CPU)
    loop.train_epoch(state, loader, config)
    CheckpointManager(config, CheckpointOptions(), SERIAL, data).save(state)
    [path] = checkpoints(config)
    content = read_checkpoint(path)
    training, [rank] = content["training"], content["training"]["ranks"]
    assert path.name == "step-000012.pt"
    assert (content["config"], content["fingerprint"]) == (config, data.fingerprint)
    assert same(content["model"], state.model.state_dict())
    assert same(training["optimizer"], state.optimizer.state_dict())
    assert training["optimizer"]["state"][0]["momentum_buffer"].any()
    assert training["schedule"] == state.schedule.state_dict()
    assert training["scaler"] == state.precision.scaler.state_dict()
    assert (training["epoch"], training["step"], training["processes"], training["precision"]) == (0, 12, 1, "fp32")
    assert torch.equal(rank["random_state"], torch.get_rng_state())
    assert torch.equal(rank["metrics"], state.partial.metrics.compute())
    assert same(rank["buffers"], list(state.model.buffers()))


def test_the_last_two_are_kept_until_the_run_has_finished(stopped):
    folder = checkpoint_folder(stopped, "baseline")
    (folder / ".step-000004.pt.half").write_bytes(b"left by a killed process")
    assert [path.name for path in saved_checkpoints(folder)] == ["step-000008.pt", "step-000004.pt"]
    assert not train(stopped, make_data(), stop_at=3, checkpoint_every=4, resume=True)  # after step 11
    assert sorted(path.name for path in folder.iterdir()) == ["step-000008.pt", "step-000011.pt"]
    assert train(stopped, make_data(), resume=True)
    assert not folder.exists()
    assert model_path(stopped, "baseline").exists()


def spoil(model):
    next(model.parameters()).data.fill_(float("inf"))


def test_weights_that_are_not_finite_are_not_saved(stopped, monkeypatch):
    """Made so by a step whose own loss was finite."""
    kept = checkpoints(stopped)
    real = CheckpointManager.save
    monkeypatch.setattr(CheckpointManager, "save", lambda manager, state: (spoil(state.model), real(manager, state)))
    with pytest.raises(InputError, match="weights or loss are not finite after step 9 of epoch 1"):
        train(stopped, make_data(), resume=True, checkpoint_every=9)
    monkeypatch.setattr(loop, "average_buffers", lambda model, _: spoil(model))
    with pytest.raises(InputError, match="the test loss is not finite after epoch 1"):
        train(stopped, make_data(), resume=True)
    assert checkpoints(stopped) == kept


def save_with_a_bad_loss(rank, ranks, path):
    """Only the last rank's second loss is not a number, and the monitor does not look after that step."""
    stopping.SECONDS_BETWEEN_CHECKS = 1e9
    real, calls = loop.train_step, []

    def train_step(*arguments):
        calls.append(1)
        bad = len(calls) == 2 and rank == ranks - 1
        return [one._replace(loss=one.loss * (float("nan") if bad else 1)) for one in real(*arguments)]

    loop.train_step = train_step
    world = World(rank, ranks, rank, ranks, launched=True)
    with pytest.raises(InputError) as refusal:
        train(in_folder(NO_DRAWS, path), make_data(), world, checkpoint_every=2)
    return str(refusal.value)


def test_a_loss_that_is_not_finite_on_one_rank_is_not_saved(tmp_path):
    first, second = run_on_ranks(save_with_a_bad_loss, 2, 2, tmp_path)
    assert first == second
    assert first.startswith("training diverged: weights or loss are not finite after step 2 of epoch 1")
    assert not checkpoints(in_folder(NO_DRAWS, tmp_path), "distributed")


def test_a_full_disk_leaves_the_earlier_checkpoint(stopped):
    """A limit on the size of a file gives the error of a full disk, without one."""
    kept = {path: path.read_bytes() for path in checkpoints(stopped)}
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write .*step-000012.pt \(File too large\)"):
            train(stopped, make_data(), resume=True, checkpoint_every=1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {path: path.read_bytes() for path in checkpoint_folder(stopped, "baseline").iterdir()} == kept


def test_writing_checkpoints_does_not_count_as_training_time(tmp_path, monkeypatch):
    """On a clock on which each one takes a thousand seconds."""
    written, real = [], training_state.time.perf_counter

    def slow(path, *arguments):
        write_checkpoint(path, *arguments)
        written.append(path)

    monkeypatch.setattr(resume, "write_checkpoint", slow)
    clock = SimpleNamespace(perf_counter=lambda: real() + 1000 * len(written))
    monkeypatch.setattr(training_state, "time", clock)
    config = in_folder(SMALL, tmp_path)
    assert train(config, make_data(), checkpoint_every=4)
    assert len(written) == 8
    run, _ = load_run(config.run_dir, "baseline")
    assert run.train_seconds < 1000


def test_checkpoints_at_the_ends_of_epochs_wait_for_a_minute(tmp_path):
    config, data = in_folder(SMALL, tmp_path), make_data()
    state = build_state(config, data, SERIAL, CPU)
    manager = CheckpointManager(config, CheckpointOptions(), SERIAL, data)
    state.epoch = 1
    manager.after_epoch(state)
    assert checkpoints(config) == []
    manager.written -= 60
    manager.after_epoch(state)
    assert [path.name for path in checkpoints(config)] == ["step-000012.pt"]
    state.epoch = 2
    manager.after_epoch(state)
    assert len(checkpoints(config)) == 1
    state.epoch, manager.written = 3, manager.written - 60
    manager.after_epoch(state)  # of a finished run, whose model is about to be written
    assert len(checkpoints(config)) == 1


def save_when_one_clock_says_so(rank, ranks, path):
    config, data, world = in_folder(SMALL, path), make_data(), World(rank, ranks, rank, ranks, launched=True)
    state = build_state(config, data, world, CPU)
    state.epoch = 1
    manager = CheckpointManager(config, CheckpointOptions(), world, data)
    manager.written -= 60 * rank
    manager.after_epoch(state)
    return [path.name for path in checkpoints(config, "distributed")]


def test_a_minute_on_one_ranks_clock_is_enough(tmp_path):
    assert run_on_ranks(save_when_one_clock_says_so, 2, 2, tmp_path) == [["step-000006.pt"]] * 2
