"""Speedup, intervals and comparability against closed forms."""

from dataclasses import replace

import numpy as np
import pytest
from helper_records import make_benchmark, make_run

from ddp_workbook.analysis.speedup import (
    accuracy_difference,
    efficiency,
    require_comparable,
    speedup,
    speedup_table,
    upper_bound_shares,
)
from ddp_workbook.analysis.statistics import mean_interval, median_interval, spread_words, wilson
from ddp_workbook.errors import InputError
from ddp_workbook.records.run import load_run
from ddp_workbook.records.timing import Interval


def test_speedup_cancels_what_slows_the_whole_machine():
    weather = np.array([1.0, 0.5, 2.0, 0.7, 1.3])
    found = speedup(150 * weather, 100 * weather)
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))


@pytest.mark.parametrize("n", [6, 7, 9, 15, 30])
def test_median_interval_covers_the_truth_as_often_as_it_says(n):
    """4,000 samples from a skewed distribution whose median is ln 2: at least 95 %, less three standard errors."""
    draws = np.random.default_rng(0).exponential(size=(4000, n))
    found = [median_interval(row) for row in draws]
    hits = sum(one.low <= np.log(2) <= one.high for one in found)
    assert hits / 4000 >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 4000)


def test_few_samples_get_their_range_and_say_so():
    found = median_interval([3.0, 1.0, 2.0])
    assert (found.value, found.low, found.high) == (2, 1, 3)
    assert spread_words(5) == "range of 5"
    assert spread_words(6) == "95 % interval"
    found = median_interval(range(1, 10))  # P(X < 2) = 10 / 512 for n = 9: the second and the eighth
    assert (found.low, found.high) == (2, 8)


def test_mean_interval_is_the_normal_one_for_many_samples():
    draws = np.random.default_rng(0).exponential(size=2000)
    found, error = mean_interval(draws), draws.std(ddof=1) / np.sqrt(2000)
    assert found.value == pytest.approx(draws.mean())
    assert (found.low, found.high) == pytest.approx(
        (draws.mean() - 1.96 * error, draws.mean() + 1.96 * error), rel=0.01
    )
    assert mean_interval(draws) == found  # drawn with a fixed seed: a table does not change when it is made again
    assert mean_interval([2.0, 2.0]) == Interval(2.0, 2.0, 2.0)


def test_efficiency_is_the_share_of_the_ideal():
    found = efficiency(Interval(1.5, 1.4, 1.6), workers=4, baseline_workers=2)
    assert (found.value, found.low, found.high) == pytest.approx((0.75, 0.7, 0.8))


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (83, 100), (8260, 10_000)])
def test_wilson_by_its_formula(right, n):
    z, p = 1.959963984540054, right / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = wilson(right, n)
    assert (found.low, found.high) == pytest.approx((centre - reach, centre + reach), abs=1e-9)


def test_wilson_of_nothing_knows_nothing():
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)


def test_accuracy_difference_by_its_formula():
    first, second = make_run(correct=90)[0], make_run("distributed", correct=80)[0]
    found = accuracy_difference(first, second)
    assert found.value == pytest.approx(-0.1)
    assert found.high - found.value == pytest.approx(1.959964 * np.sqrt((0.09 + 0.16) / 200), rel=1e-5)


def test_speedup_table_names_its_baselines():
    rows = speedup_table(make_benchmark())
    assert [row.baseline for row in rows] == ["1 process, 1 thread", "1 process, 2 threads"]
    assert [row.speedup.value for row in rows] == pytest.approx([1.5, 0.9])
    assert [row.efficiency.value for row in rows] == pytest.approx([0.75, 0.9])


def test_share_of_the_bound():
    shares = upper_bound_shares(make_benchmark())
    assert {name: share.value for name, share in shares.items()} == {"2 processes, 1 thread each": pytest.approx(0.75)}


def test_equal_runs_are_comparable():
    require_comparable(make_run()[0], make_run("distributed")[0])


def changed(run, part, **values):
    inner = getattr(run, part)
    new = replace(inner, **values) if part == "config" else inner.model_copy(update=values)
    return run.model_copy(update={part: new})


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("config", {"epochs": 3}),
        ("config", {"lr": 0.5}),
        ("config", {"seed": 1}),
        ("config", {"augment": False}),
        ("config", {"label_smoothing": 0.2}),
        ("config", {"schedule": "step"}),
        ("dataset", {"fingerprint": "1" * 64}),
        ("dataset", {"train_images": 801}),
        ("environment", {"cpu": "Another processor"}),
        ("environment", {"cores": 4}),
        ("environment", {"memory_bytes": 2**34}),
        ("environment", {"torch": "2.10"}),
        ("environment", {"device": "cuda"}),
        ("world", {"precision": "bf16"}),
        ("world", {"global_batch": 128}),
    ],
)
def test_a_difference_is_refused_by_name(part, values):
    field = f"{part}.{next(iter(values))}"
    with pytest.raises(InputError, match=field):
        require_comparable(make_run()[0], changed(make_run("distributed")[0], part, **values))


def test_another_recipe_is_refused():
    with pytest.raises(InputError, match="recipe is 'resnet50-digits' in the baseline and 'other'"):
        require_comparable(make_run()[0], make_run("distributed")[0].model_copy(update={"recipe": "other"}))


def test_missing_results_say_so(tmp_path):
    with pytest.raises(InputError, match=r"baseline_metrics.json does not exist; the run that makes it"):
        load_run(tmp_path, "baseline")
