"""Runs with unequal batches, resumed: bit for bit like uninterrupted ones, with the sizes of their beginning."""

from dataclasses import replace

import pytest
from conftest import make_data, run_on_ranks
from helper_interrupted_runs import CPU, SMALL, in_folder, same, train, use_tiny_model_and_check_every_step

import distributed_train
from ddp_workbook.config import CheckpointOptions
from ddp_workbook.distributed.process_group import World
from ddp_workbook.errors import InputError
from ddp_workbook.records.run import load_run
from ddp_workbook.runs.checkpoint import checkpoint_folder, read_checkpoint, saved_checkpoints
from ddp_workbook.runs.resume import CheckpointManager
from ddp_workbook.training.state import build_state

RUN = replace(SMALL, model="cnn", augment=True, flip=True, batch_size=6)  # 4 steps an epoch on two ranks, 2 on three
GIVEN = {2: "1:2", 3: "1:1:3"}
MEASURED, OTHERWISE = {2: [3, 9], 3: [4, 4, 10]}, {2: [7, 5], 3: [6, 6, 6]}


def results_on_rank(rank, ranks, path):
    """For shares that are given and for measured ones: like an uninterrupted run? The sizes saved and recorded."""
    use_tiny_model_and_check_every_step()
    world, data, found = World(rank, ranks, rank, ranks, launched=True), make_data(), []
    for balance in (GIVEN[ranks], "auto"):
        complete, interrupted = (
            in_folder(replace(RUN, balance=balance), path / balance.replace(":", "-") / kind)
            for kind in ("complete", "interrupted")
        )
        distributed_train.measure_batch_sizes = lambda *_: MEASURED[ranks]
        expected = train(complete, data, world)
        assert not train(interrupted, data, world, stop_at=3 if rank == 0 else 0)
        newest, *_ = saved_checkpoints(checkpoint_folder(interrupted, "distributed"))
        saved = read_checkpoint(newest)["training"]["batch_sizes"]
        distributed_train.measure_batch_sizes = lambda *_: OTHERWISE[ranks]
        if balance != "auto":
            with pytest.raises(InputError, match=f"belongs to a run with --balance {balance}, this one has equal"):
                train(replace(interrupted, balance="equal"), data, world, resume=True)
        resumed = train(interrupted, data, world, resume=True)
        run, _ = load_run(interrupted.run_dir, "distributed")
        found.append((same(expected, resumed), saved, run.world.batch_sizes))
    return found


@pytest.mark.parametrize("ranks", GIVEN)
def test_a_balanced_run_resumes_exactly(ranks, tmp_path):
    """Another measurement would give other sizes: a resumed run must not measure again."""
    given = {2: [4, 8], 3: [4, 3, 11]}[ranks]
    expected = [(True, sizes, sizes) for sizes in (given, MEASURED[ranks])]
    assert run_on_ranks(results_on_rank, ranks, ranks, tmp_path) == [expected] * ranks


@pytest.mark.parametrize(("balance", "expected"), [("1:1:3", [3, 2, 7]), ("auto", None), ("equal", None)])
def test_another_number_of_ranks_gets_its_own_sizes(balance, expected, tmp_path):
    """A run of two ranks with 4 and 8 images, resumed on three: by their shares, or not measured yet."""
    two, three, data = World(0, 2, 0, 2), World(0, 3, 0, 3), make_data()
    before = in_folder(replace(RUN, balance="1:2"), tmp_path)
    state = build_state(before, data, two, CPU)
    assert state.batch_sizes == [4, 8]
    CheckpointManager(before, CheckpointOptions(), two, data).save(state)
    now = replace(before, batch_size=4, balance=balance)
    state = build_state(now, data, three, CPU)
    CheckpointManager(now, CheckpointOptions(resume=True), three, data).resume(state)
    assert state.batch_sizes == expected
