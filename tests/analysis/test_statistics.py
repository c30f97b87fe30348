"""Estimates and their intervals against closed forms and against how often they cover the truth."""

import numpy as np
import pytest

from ddp_workbook.analysis.statistics import SAMPLES_NEEDED, mean_interval, median_interval, spread_words, wilson
from ddp_workbook.records.timing import Interval


@pytest.mark.parametrize("n", [6, 7, 9, 15, 30])
def test_median_interval_covers_the_truth_as_often_as_it_says(n):
    """4,000 samples from a skewed distribution whose median is ln 2: at least 95 %, less three standard errors."""
    draws = np.random.default_rng(0).exponential(size=(4000, n))
    intervals = [median_interval(row) for row in draws]
    hits = sum(one.low <= np.log(2) <= one.high for one in intervals)
    assert hits / 4000 >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 4000)


def test_few_samples_get_their_range_and_say_so():
    found = median_interval([3.0, 1.0, 2.0])
    assert (found.value, found.low, found.high) == (2, 1, 3)
    assert spread_words(5) == "range of 5"
    assert spread_words(6) == "95 % interval"
    found = median_interval(range(1, 10))  # P(X < 2) = 10 / 512 for n = 9: the second and the eighth
    assert (found.low, found.high) == (2, 8)


def test_from_six_samples_on_the_range_covers_the_median_often_enough():
    """It misses when all samples lie on the same side: 2 / 2**n."""
    assert 1 - 2 / 2**SAMPLES_NEEDED >= 0.95 > 1 - 2 / 2 ** (SAMPLES_NEEDED - 1)


def test_mean_interval_is_the_normal_one_for_many_samples():
    draws = np.random.default_rng(0).exponential(size=2000)
    found, error = mean_interval(draws), draws.std(ddof=1) / np.sqrt(2000)
    assert found.value == pytest.approx(draws.mean())
    assert (found.low, found.high) == pytest.approx(
        (draws.mean() - 1.96 * error, draws.mean() + 1.96 * error), rel=0.01
    )
    assert mean_interval(draws) == found  # drawn with a fixed seed: a table does not change when it is made again
    assert mean_interval([2.0, 2.0]) == Interval(2.0, 2.0, 2.0)


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (83, 100), (8260, 10_000)])
def test_wilson_by_its_formula(correct, n):
    z, p = 1.959963984540054, correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = wilson(correct, n)
    assert (found.low, found.high) == pytest.approx((centre - reach, centre + reach), abs=1e-9)


def test_without_trials_wilsons_interval_is_all_from_0_to_1():
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)
