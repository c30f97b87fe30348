"""The batch-size sweep: every model and batch size, and more rounds for a point that is not settled."""

import functools
import itertools
from contextlib import contextmanager
from dataclasses import replace

import pytest
from conftest import make_data
from helper_records import make_breakdown, make_steps, make_sweep

from ddp_workbook.analysis.costmodel import check_steps, is_settled, measured_speedup
from ddp_workbook.analysis.statistics import SAMPLES_NEEDED
from ddp_workbook.errors import InputError
from ddp_workbook.measurement import batch_sweep
from ddp_workbook.measurement.batch_sweep import ROUNDS_AT_MOST, sweep_batch_sizes, sweep_config, swept_models
from ddp_workbook.measurement.benchmark import WARM_UP_STEPS, time_training
from ddp_workbook.measurement.step_breakdown import benchmark_all_reduce, describe_session, time_session_steps
from ddp_workbook.measurement.workers import Worker
from ddp_workbook.recipes import RECIPES
from ddp_workbook.specs import MODELS

CONFIG = replace(RECIPES["mlp-digits"], dropout=0.0, precision="fp32", device="cpu")
STEPS = MODELS["mlp"].sweep_steps


def test_a_sweep_has_every_model_and_can_be_checked(monkeypatch):
    monkeypatch.setattr(batch_sweep, "MODELS", {name: MODELS[name] for name in ("mlp", "cnn")})
    monkeypatch.setattr(batch_sweep, "ROUNDS_AT_MOST", 1)  # this and the next line save half a minute
    two_sizes = functools.partial(benchmark_all_reduce, sizes=(2**10, 2**20))
    monkeypatch.setattr(batch_sweep, "benchmark_all_reduce", two_sizes)
    seen = []
    record = sweep_batch_sizes(CONFIG, 2, (4, 16), rounds=2, on_point=seen.append)
    points = [("mlp", 4), ("mlp", 16), ("cnn", 4), ("cnn", 16)]
    assert [(point.model, point.images) for point in record.points] == points
    assert seen == record.points
    assert all(check.predicted > 0 for check in check_steps(record))
    for point in record.points:
        assert len(point.serial) == 2
        assert len(point.synced) == len(point.no_sync) == 2 * MODELS[point.model].sweep_steps


def test_each_model_is_trained_as_in_its_own_recipe_on_the_data_of_the_course():
    for model in MODELS:
        config = sweep_config(replace(CONFIG, grad_accum_steps=2), model)
        assert (config.model, config.dataset, config.device, config.grad_accum_steps) == (model, "digits", "cpu", 1)
    assert sweep_config(CONFIG, "mlp").optimizer == "adam"
    assert sweep_config(CONFIG, "cnn").optimizer == "sgd"


def test_a_sweep_times_three_networks_and_the_recipes_own():
    """Not all of them: each takes seconds in every course."""
    for model in MODELS:
        found = swept_models(replace(CONFIG, model=model))
        assert len(found) == (3 if MODELS[model].in_every_sweep else 4)
        assert model in found


class FakePool:
    """Answers in place of worker processes: a serial step takes 10 ms times the round's factor, a synced one 5 ms."""

    def __init__(self, processes, factors):
        self.processes, self.factors, self.calls = processes, factors, []

    def call(self, function, *arguments):
        self.calls.append((function, *arguments))
        if function is time_training:
            _, communicate, steps, seed = arguments
            assert not communicate
            assert seed is None
            return [(0.01 * steps if steps == WARM_UP_STEPS else 0.01 * steps * next(self.left), [])]
        if function is time_session_steps:
            _, steps, _ = arguments
            timeline = make_breakdown().timeline
            return [([make_steps(0.005, 1)[0]] * steps, [make_steps(0.004, 1)[0]] * steps, timeline)] * self.processes
        if function is describe_session:
            return [(1000, "fp32")] * self.processes
        assert function is Worker.forget
        self.left = iter(self.factors)  # the next point starts with the first one
        return [None] * self.processes


@pytest.fixture
def sweep(monkeypatch):
    """sweep(factors, rounds): a sweep of the MLP at two batch sizes, without any timing; the record and its pools."""

    def run(factors, *rounds):
        pools = []

        @contextmanager
        def fake_pool(name, config, processes, threads):
            pools.append(FakePool(processes, factors))
            pools[-1].call(Worker.forget)
            yield pools[-1]

        monkeypatch.setattr(batch_sweep, "WorkerPool", fake_pool)
        monkeypatch.setattr(batch_sweep, "MODELS", {"mlp": MODELS["mlp"]})
        monkeypatch.setattr(batch_sweep, "load_dataset", lambda config: make_data())
        monkeypatch.setattr(batch_sweep, "benchmark_all_reduce", lambda pool: make_sweep().all_reduce)
        return sweep_batch_sizes(CONFIG, 2, (4, 16), *rounds), pools

    return run


ROUNDS = 5
LIMIT = ROUNDS * ROUNDS_AT_MOST


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ([1.0] * ROUNDS, ROUNDS),  # a further round would find no factor left
        ([1.0, 1.05, 1.1, 1.0, 1.0], ROUNDS),  # within 15 % of each other
        ([1.0, 1.4] + [1.0] * 8, 10),  # from nine rounds on the interval leaves out the largest
        (([1.0, 2.0] * LIMIT)[:LIMIT], LIMIT),
    ],
    ids=["equal", "nearly equal", "one outlier", "never settled"],
)
def test_a_point_gets_more_rounds_until_it_is_settled(sweep, factors, expected):
    record, _ = sweep(factors, ROUNDS)
    assert [len(point.serial) for point in record.points] == [expected] * 2
    for point in record.points:
        assert len(point.synced) == len(point.no_sync) == expected * STEPS
        assert is_settled(point) == (2.0 not in factors)
        assert point.serial == pytest.approx([0.01 * factor for factor in factors])
        assert measured_speedup(point).low == pytest.approx(2.0)


@pytest.mark.parametrize("settled_after", [*range(1, LIMIT + 3)])
def test_a_point_is_judged_only_after_each_set_of_rounds(sweep, monkeypatch, settled_after):
    """Being settled in between does not count: the chance to stop at a lucky moment must stay small."""
    monkeypatch.setattr(batch_sweep, "is_settled", lambda point: len(point.serial) >= settled_after)
    record, _ = sweep([1.0, 2.0] * LIMIT, ROUNDS)
    sets = max(1, -(-settled_after // ROUNDS))
    assert {len(point.serial) for point in record.points} == {min(sets * ROUNDS, LIMIT)}


def test_a_point_that_takes_too_long_gets_no_further_round(sweep, monkeypatch):
    monkeypatch.setattr(batch_sweep, "SECONDS_AT_MOST", -1)
    record, _ = sweep([1.0, 2.0] * LIMIT, ROUNDS)
    assert {len(point.serial) for point in record.points} == {ROUNDS}


def test_without_a_number_a_point_has_rounds_enough_for_a_95_percent_interval(sweep):
    record, _ = sweep([1.0] * SAMPLES_NEEDED)
    assert {len(point.serial) for point in record.points} == {SAMPLES_NEEDED}


def points_of(pool):
    """The pool's calls, point by point: between two points everything is forgotten."""
    groups = itertools.groupby(pool.calls, lambda call: call[0] is Worker.forget)
    return [list(calls) for forgets, calls in groups if not forgets]


def test_both_kinds_of_steps_are_timed_each_round_after_one_warm_up(sweep):
    _, pools = sweep([1.0] * ROUNDS, ROUNDS)
    for number, images in enumerate((4, 16)):
        serial, [described, *distributed] = (points_of(pool)[number] for pool in pools)
        assert [steps for _, _, _, steps, _ in serial] == [WARM_UP_STEPS] + [STEPS] * ROUNDS
        assert described[0] is describe_session
        assert [call[2:] for call in distributed] == [(STEPS, WARM_UP_STEPS)] + [(STEPS, 0)] * (ROUNDS - 1)
        assert {call[1].batch_size for call in serial} == {2 * images}
        assert {call[1].batch_size for call in distributed} == {images}


def test_batch_sizes_that_the_data_cannot_fill_are_left_out():
    with pytest.raises(InputError, match="fewer than two of the batch sizes") as refusal:
        sweep_batch_sizes(CONFIG, 2, (4, 1000), rounds=2)
    assert "1437 training images" in str(refusal.value)
