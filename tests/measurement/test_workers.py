"""The worker pool: sessions that stay between calls, errors that are reported, and processes that end."""

import os
import time
from dataclasses import replace

import psutil
import pytest
import torch
import torch.distributed as dist

from ddp_workbook.distributed.ddp import MeteredDDP
from ddp_workbook.distributed.launch import LaunchError
from ddp_workbook.errors import InputError
from ddp_workbook.measurement.workers import Worker, WorkerPool
from ddp_workbook.recipes import RECIPES

CONFIG = replace(RECIPES["mlp-digits"], dropout=0.0, precision="fp32", device="cpu")


def describe(worker):
    return worker.world.rank, worker.world.size, dist.is_initialized(), torch.get_num_threads(), os.getpid()


def weights(worker, config, communicate, steps, seed=None):
    session = worker.session(config, communicate)
    if seed is not None:
        session.restart(seed)
    for _ in range(steps):
        session.step()
    return torch.cat([p.detach().flatten() for p in session.state.model.parameters()]).numpy()


def session_facts(worker, config, communicate):
    session = worker.session(config, communicate)
    again = worker.session(config, communicate) is session
    return again, isinstance(session.state.model, MeteredDDP), len(worker.sessions), len(worker.datasets)


def fail(worker, rank):
    if worker.world.rank == rank:
        raise KeyError("only this rank")
    worker.barrier()  # which the failing rank never reaches


def refuse_on(worker, rank):
    if worker.world.rank == rank:
        raise InputError("larger than a share")
    worker.barrier()


def vanish(worker, rank):
    if worker.world.rank == rank:
        os._exit(3)
    worker.barrier()


@pytest.fixture(scope="module")
def pool():
    with WorkerPool("a pair", CONFIG, 2, 1) as found:
        yield found


def test_workers_stay_and_answer_in_the_order_of_their_ranks(pool):
    first, second = pool.call(describe), pool.call(describe)
    assert first == second
    assert [answer[:4] for answer in first] == [(0, 2, True, 1), (1, 2, True, 1)]


def test_a_single_worker_has_no_process_group_and_all_its_threads():
    with WorkerPool("one", CONFIG, 1, 2) as single:
        [answer] = single.call(describe)
        assert answer[:4] == (0, 1, False, 2)
        single.call(Worker.barrier)
        assert single.call(session_facts, CONFIG, True)[0][:2] == (True, False)


def test_ranks_that_communicate_stay_alike_and_others_do_not(pool):
    for communicate, alike in ((True, True), (False, False)):
        first, second = pool.call(weights, CONFIG, communicate, 3, 0)
        assert (first == second).all() == alike


def test_a_restart_begins_with_the_seeds_weights_and_batches(pool):
    first, second = pool.call(weights, CONFIG, True, 2, 5), pool.call(weights, CONFIG, True, 2, 5)
    assert (first[0] == second[0]).all()
    assert (first[0] != pool.call(weights, CONFIG, True, 2, 6)[0]).any()
    assert (first[0] != pool.call(weights, CONFIG, True, 1)[0]).any()  # without a seed the training continues


def test_a_session_is_created_once_for_each_configuration(pool):
    pool.call(Worker.forget)
    other = replace(CONFIG, batch_size=8)
    assert pool.call(session_facts, CONFIG, True) == [(True, True, 1, 1)] * 2
    assert pool.call(session_facts, CONFIG, False) == [(True, False, 2, 1)] * 2
    assert pool.call(session_facts, other, True) == [(True, True, 3, 1)] * 2  # all from one copy of the images
    pool.call(Worker.forget)
    assert pool.call(session_facts, other, True) == [(True, True, 1, 1)] * 2


def test_a_failing_workers_own_error_is_reported_and_no_process_stays():
    start = time.monotonic()
    refused = pytest.raises(LaunchError, match=r"'a pair': rank 1: KeyError: 'only this rank'")
    with refused, WorkerPool("a pair", CONFIG, 2, 1) as pair:
        processes = [psutil.Process(answer[-1]) for answer in pair.call(describe)]
        pair.call(fail, 1)
    assert not [process for process in processes if process.is_running()]
    assert time.monotonic() - start < 60  # rank 0 would have waited for half an hour


def test_bad_input_that_a_worker_finds_is_bad_input_here_and_nothing_is_printed(capfd):
    with pytest.raises(InputError, match=r"^larger than a share$"), WorkerPool("a pair", CONFIG, 2, 1) as pair:
        pair.call(refuse_on, 1)
    assert not capfd.readouterr().err


def test_a_worker_that_dies_is_noticed():
    with (
        pytest.raises(LaunchError, match=r"'a pair': rank 0 died .* \(exit code 3\)"),
        WorkerPool("a pair", CONFIG, 2, 1) as pair,
    ):
        processes = [psutil.Process(answer[-1]) for answer in pair.call(describe)]
        pair.call(vanish, 0)
    assert not [process for process in processes if process.is_running()]


def test_after_the_block_no_process_stays():
    with WorkerPool("a pair", CONFIG, 2, 1) as pair:
        processes = [psutil.Process(answer[-1]) for answer in pair.call(describe)]
        assert all(process.is_running() for process in processes)
    assert not [process for process in processes if process.is_running()]
