"""A run that was interrupted and goes on against one that was not: the same weights and history, bit for bit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_data, run_on_ranks
from ddp_workbook.checkpoint import checkpoint_path, load_checkpoint
from ddp_workbook.loader import TrainLoader
from ddp_workbook.record import load_run
from ddp_workbook.results import finished_run, tell_finished
from ddp_workbook.resume import Keeper, read_sealed, resume_dir, saved_steps
from interrupting import (
    ALONE,
    CPU,
    RUNS,
    SHARED,
    SMALL,
    be_small_and_attentive,
    both_ways,
    go_on_with_these,
    in_folder,
    outcome,
    same,
    stop_early,
    stop_on_these,
    train,
)

import distributed_train
from ddp_workbook import devices
from ddp_workbook.config import Keeping
from ddp_workbook.distributed import World
from ddp_workbook.errors import InputError


@pytest.fixture(autouse=True)
def small_and_attentive(monkeypatch):
    be_small_and_attentive(monkeypatch)


@pytest.fixture
def stopped(tmp_path):
    return stop_early(tmp_path)


@pytest.mark.parametrize("stop_at", [5, 12])
@pytest.mark.parametrize("name", RUNS)
def test_a_serial_run_goes_on_exactly(name, stop_at, tmp_path, capsys):
    """Stopped in the middle of an epoch and at its end."""
    plain, broken = in_folder(RUNS[name], tmp_path / "plain"), in_folder(RUNS[name], tmp_path / "broken")
    data = make_data()
    assert train(plain, data)
    assert not train(broken, data, stop_at=stop_at)
    assert train(broken, data, resume=True)
    assert same(outcome(plain), outcome(broken))
    epoch, step = divmod(stop_at, TrainLoader(data, plain, ALONE, CPU).steps)
    expected = f"going on after step {step} of epoch {epoch + 1}," if step else f"going on after epoch {epoch},"
    assert expected in capsys.readouterr().out
    assert not resume_dir(broken, "baseline").exists()


def test_a_distributed_run_goes_on_exactly(tmp_path):
    expected = {name: (f"step-{at:06d}", True) for name, at in zip(RUNS, (4, 3, 2), strict=True)}
    assert run_on_ranks(both_ways, 2, 2, tmp_path) == [expected] * 2


def test_bf16_goes_on_exactly(tmp_path):
    if not devices.has_bf16(CPU):
        pytest.skip("this processor has no bf16")
    run = replace(RUNS["dropout, crops, flips, accumulation"], precision="bf16")
    plain, broken = in_folder(run, tmp_path / "plain"), in_folder(run, tmp_path / "broken")
    assert train(plain, make_data())
    assert not train(broken, make_data(), stop_at=8)
    assert train(broken, make_data(), resume=True)
    assert same(outcome(plain), outcome(broken))


REFUSED = {
    "lr": ({"lr": 1.0}, r"--lr 0.1, this one has 1.0"),
    "epochs": ({"epochs": 4}, "--epochs 3, this one has 4"),
    "batch": ({"batch_size": 6}, "--batch-size 4, this one has 6"),
    "seed": ({"seed": 1}, "--seed 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_runs_checkpoint_is_refused(stopped, case):
    changes, message = REFUSED[case]
    before = {path: path.read_bytes() for path in saved_steps(resume_dir(stopped, "baseline"))}
    with pytest.raises(InputError, match=message):
        train(replace(stopped, **changes), make_data(), resume=True)
    assert {path: path.read_bytes() for path in before} == before


def test_other_images_are_refused(stopped):
    other = make_data()
    other.train.images[0] += 1
    with pytest.raises(InputError, match="other images"):
        train(stopped, other, resume=True)


def test_what_computes_the_same_may_differ(stopped):
    assert train(replace(stopped, device="auto", threads=1, data_dir=Path("elsewhere")), make_data(), resume=True)


def test_another_number_of_processes_goes_on_where_it_can(stopped, capsys):
    """Two processes of 2 images each are as good as one of 4; at the end of an epoch anyone can take over."""
    keeper = Keeper(replace(stopped, batch_size=2), Keeping(), "baseline", World(0, 2), make_data())
    newest, _ = saved_steps(resume_dir(stopped, "baseline"))
    content = read_sealed(newest)
    assert "in the middle of an epoch, where only 1" in keeper._difference(content)
    assert keeper._difference(content | {"step": 0}) is None
    keeper.config = replace(stopped, batch_size=3)
    assert "global batch of 4, this one's is 6; choose --batch-size" in keeper._difference(content | {"step": 0})


def test_fewer_and_more_processes_end_with_the_same_weights(tmp_path):
    """Two processes stop, one goes on; one stops, two go on. Each against two, or one, that were never stopped."""
    for before, after in ((2, 1), (1, 2)):
        path = tmp_path / str(before)
        [first, *_] = run_on_ranks(stop_on_these, before, before, path)
        run_on_ranks(go_on_with_these, after, after, path)
        runs = [load_run(path / kind / "results" / SHARED.recipe, "distributed") for kind in ("plain", "broken")]
        (_, plain), (run, broken) = runs
        assert run.world.processes == after
        assert [epoch.model_dump() for epoch in broken.epochs[:1]] == first  # not trained again
        for one, other in zip(plain.epochs, broken.epochs, strict=True):
            assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        paths = (checkpoint_path(in_folder(SHARED, path / kind), "distributed") for kind in ("plain", "broken"))
        weights, others = (load_checkpoint(one)[0]["model"] for one in paths)
        assert all(torch.allclose(weights[name], others[name], atol=1e-5) for name in weights)


def test_nothing_to_go_on_from(tmp_path, capsys):
    assert train(in_folder(SMALL, tmp_path), make_data(), resume=True)
    assert "no checkpoint of an interrupted run in" in capsys.readouterr().out


def test_without_resume_a_run_starts_afresh_and_says_so(stopped, tmp_path, capsys):
    capsys.readouterr()
    assert not train(stopped, make_data(), stop_at=2)
    assert "holds an interrupted run; starting afresh" in capsys.readouterr().out
    assert [path.name for path in saved_steps(resume_dir(stopped, "baseline"))] == ["step-000002.pt"]


def test_a_run_that_torchrun_restarts_goes_on_by_itself(stopped, capsys):
    again = World(restarts=1)
    assert not train(stopped, make_data(), again, stop_at=2)
    assert "going on after step 8 of epoch 1" in capsys.readouterr().out
    assert train(replace(stopped, lr=0.2), make_data(), again)  # killed before its own first checkpoint
    assert "belongs to another run: starting afresh" in capsys.readouterr().out


def test_a_finished_run_is_not_trained_again_by_resume(tmp_path, capsys):
    """As a scheduler that starts the same job twice would have it."""
    config = in_folder(replace(SMALL, dataset="digits", image_size=28, epochs=1, batch_size=64, lr_batch=64), tmp_path)
    distributed_train.run(config, Keeping(), ALONE)
    before = checkpoint_path(config, "baseline").read_bytes()
    capsys.readouterr()
    distributed_train.run(config, Keeping(resume=True), ALONE)
    assert capsys.readouterr().out.startswith("this run finished at ")
    assert checkpoint_path(config, "baseline").read_bytes() == before
    distributed_train.run(replace(config, seed=1), Keeping(resume=True), ALONE)
    assert "starting afresh" in capsys.readouterr().out


def test_a_run_says_which_earlier_one_it_replaces(stopped, capsys):
    assert not tell_finished(stopped, ALONE, resume=False)
    assert capsys.readouterr().out == ""
    assert train(stopped, make_data())
    earlier, _ = finished_run(stopped, "baseline", 1)
    capsys.readouterr()
    assert not tell_finished(replace(stopped, lr=0.2), ALONE, resume=False)
    said = f"replaces that of {earlier.finished_at} (1 process(es), {earlier.test_accuracy:.2%}) in {stopped.run_dir}"
    assert said in capsys.readouterr().out


def test_an_interrupted_run_after_a_finished_one_goes_on(stopped, capsys):
    """Both have the same settings; what was begun last counts."""
    assert train(stopped, make_data())
    assert not train(stopped, make_data(), stop_at=8, checkpoint_every=4)
    assert finished_run(stopped, "baseline", 1)
    assert not tell_finished(stopped, ALONE, resume=True)
    assert "finished at" not in capsys.readouterr().out
    assert train(stopped, make_data(), resume=True)
    assert tell_finished(stopped, ALONE, resume=True)
