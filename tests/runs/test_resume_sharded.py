"""Sharded runs that are stopped and resumed: bit for bit, on other numbers of processes, and sharded otherwise."""

from dataclasses import replace

import pytest
import torch
from conftest import make_data, run_on_ranks
from helper_interrupted_runs import NO_DRAWS, RUNS, in_folder, same, train, use_tiny_model_and_check_every_step

from ddp_workbook.distributed.process_group import World
from ddp_workbook.records.run import load_run, model_path
from ddp_workbook.runs.checkpoint import checkpoint_folder, read_checkpoint, saved_checkpoints
from ddp_workbook.training import models

SHARDS = ("optimizer", "full")
RESUMED = {  # the step that it is stopped after, of 3 or 6 in an epoch: SGD in the first one, Adam in the second
    ("full", "BatchNorm, crops"): 2,
    ("full", "dropout, Adam, step decay"): 7,
    ("optimizer", "dropout, Adam, step decay"): 7,
}
GLOBAL_BATCH = 12  # fits 1, 2 and 3 processes; 48 images: 4 steps an epoch
EPOCH = 48 // GLOBAL_BATCH


def use_small_networks():
    """In this process; all ranks also check for signals after each step."""
    use_tiny_model_and_check_every_step()
    models.MLP_WIDTHS = (48, 32, 16)


def resume_each(rank, ranks, path):
    """For each of RESUMED: where it was stopped, and whether it ended like an uninterrupted run."""
    use_small_networks()
    world, data, found = World(rank, ranks, rank, ranks, launched=True), make_data(), {}
    for (shard, name), stop_at in RESUMED.items():
        run = replace(RUNS[name], shard=shard, epochs=2)
        complete, interrupted = (in_folder(run, path / shard / name / kind) for kind in ("complete", "interrupted"))
        expected = train(complete, data, world)
        assert not train(interrupted, data, world, stop_at=stop_at if rank == ranks - 1 else 0)
        where = saved_checkpoints(checkpoint_folder(interrupted, "distributed"))[0].stem
        found[shard, name] = where, same(expected, train(interrupted, data, world, resume=True))
    return found


def test_a_sharded_run_resumes_exactly(tmp_path):
    expected = {case: (f"step-{at:06d}", True) for case, at in RESUMED.items()}
    assert run_on_ranks(resume_each, 2, 2, tmp_path) == [expected] * 2


def run_for(shard, ranks, path, optimizer="adam"):
    """The same training on any number of processes."""
    config = replace(
        NO_DRAWS, shard=shard, optimizer=optimizer, lr=1e-3, batch_size=GLOBAL_BATCH // ranks,
        base_batch_size=GLOBAL_BATCH, epochs=2,
    )  # fmt: skip
    return in_folder(config, path)


def train_part(rank, ranks, plan):
    """In order, each (how it is sharded, folder, steps until it is stopped; 0: it resumes, and runs to its end)."""
    use_small_networks()
    world = World(rank, ranks, rank, ranks, launched=True)
    for shard, path, stop_at in plan:
        train(run_for(shard, ranks, path), make_data(), world, stop_at=stop_at, resume=not stop_at)


def final(path, kind="distributed"):
    """The weights of a finished run, as one vector."""
    content = read_checkpoint(model_path(run_for("none", 1, path), kind))
    return torch.cat([value.flatten() for value in content["model"].values()])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Runs that changed their number of processes, or how they are sharded, after an epoch or in the middle of one."""
    path = tmp_path_factory.mktemp("elastic")
    stops = [("none", "plain", 0), ("optimizer", "optimizer 2 to 3", EPOCH), ("full", "full 2 to 3", EPOCH)]
    turns = [("none", "none to full", 3), ("full", "full to optimizer", 3), ("optimizer", "optimizer to none", 3)]
    ends = [(turn.split()[-1], turn, 0) for _, turn, _ in turns]
    plans = [
        (2, [*stops, *turns, *((shard, f"stopped {shard}", 3) for shard in ("none", *SHARDS)), *ends]),
        (3, [("optimizer", "optimizer 2 to 3", 0), ("full", "full 2 to 3", 0)]),
        (3, [("optimizer", "optimizer 3 to 1", EPOCH), ("full", "full 3 to 1", EPOCH)]),
        (1, [("optimizer", "optimizer 3 to 1", 0), ("full", "full 3 to 1", 0)]),
    ]
    for ranks in (2, 3, 1):
        plan = [step for count, steps in plans if count == ranks for step in steps]
        run_on_ranks(train_part, ranks, ranks, [(shard, path / name, stop) for shard, name, stop in plan])
    return path


@pytest.mark.parametrize("change", [f"{shard} {numbers}" for shard in SHARDS for numbers in ("2 to 3", "3 to 1")])
def test_other_numbers_of_processes_end_with_the_same_weights(folders, change):
    """Against an uninterrupted run that is not sharded, on two processes, with the tolerance of unsharded runs."""
    assert torch.allclose(final(folders / change), final(folders / "plain"), atol=1e-5)
    run, history = load_run(run_for("none", 1, folders / change).run_dir, "distributed")
    assert (run.world.processes, len(history.epochs)) == (int(change[-1]), 2)
    assert len(run.rank_bytes) == run.world.processes


@pytest.mark.parametrize("change", ["none to full", "full to optimizer", "optimizer to none"])
def test_a_run_may_be_resumed_with_another_way_of_sharding(folders, change):
    assert torch.equal(final(folders / change), final(folders / "plain"))
    assert load_run(run_for("none", 1, folders / change).run_dir, "distributed")[0].config.shard == change.split()[-1]


def test_checkpoints_are_whole_and_those_of_a_run_that_is_not_sharded(folders):
    """Read in a process without a group, by torch.load(weights_only=True)."""
    stopped = {shard: run_for(shard, 2, folders / f"stopped {shard}") for shard in ("none", *SHARDS)}
    plain, *others = (
        read_checkpoint(saved_checkpoints(checkpoint_folder(config, "distributed"))[0]) for config in stopped.values()
    )
    assert plain["training"]["optimizer"]["state"][0]["exp_avg"].any()
    for other in others:
        assert same(other["model"], plain["model"])
        assert same(other["training"]["optimizer"], plain["training"]["optimizer"])
        assert list(other["training"]) == list(plain["training"])
        assert same(other["training"]["ranks"], plain["training"]["ranks"])
