"""Estimates and their intervals against closed forms, scipy and counting. How often they cover: test_coverage.py."""

import numpy as np
import pytest
from scipy import stats

from ddp_workbook.analysis.statistics import (
    SAMPLES_NEEDED,
    jackknife_error,
    mcnemar,
    mean_interval,
    means_without_each,
    median_interval,
    paired_difference,
    round_means,
    spread_words,
    t_interval,
    wilson,
)
from ddp_workbook.records.timing import Interval


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


def test_round_means_are_the_means_of_consecutive_steps():
    assert round_means([1, 3, 5, 7, 10, 20], 3).tolist() == [2, 6, 15]
    with pytest.raises(ValueError):
        round_means([1, 2, 3], 2)


def test_mean_interval_is_scipys_t_interval():
    draws = np.random.default_rng(0).exponential(size=9)
    judge = stats.ttest_1samp(draws, 0).confidence_interval(0.95)
    found = mean_interval(draws)
    assert (found.value, found.low, found.high) == pytest.approx((draws.mean(), judge.low, judge.high))
    assert mean_interval([2.0, 2.0]) == Interval(2.0, 2.0, 2.0)


def test_the_interval_of_a_sum_is_welchs():
    """The difference of two means whose samples have unequal variances, against scipy's Welch test."""
    draws = np.random.default_rng(0)
    a, b = draws.normal(5, 1, 6), draws.normal(3, 4, 11)
    judge = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    found = t_interval(a.mean() - b.mean(), [(stats.sem(a), 5), (stats.sem(b), 10)])
    assert (found.low, found.high) == pytest.approx((judge.low, judge.high))


def test_the_jackknife_finds_the_standard_error_of_a_mean_and_nearly_that_of_a_ratio():
    draws = np.random.default_rng(0)
    x = draws.normal(5, 1, 40)
    y = 2 * x + draws.normal(0, 0.1, 40)  # nearly proportional: the ratio varies far less than either mean
    assert means_without_each(x)[7] == pytest.approx(np.delete(x, 7).mean())
    assert jackknife_error(means_without_each(x)) == pytest.approx(stats.sem(x))
    by_delta_method = stats.sem(y - y.mean() / x.mean() * x) / x.mean()
    found = jackknife_error(means_without_each(y) / means_without_each(x))
    assert found == pytest.approx(by_delta_method, rel=0.02)
    assert found < 0.1 * stats.sem(y) / x.mean()


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (83, 100), (8260, 10_000)])
def test_wilson_by_its_formula(correct, n):
    z, p = 1.959963984540054, correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = wilson(correct, n)
    assert (found.low, found.high) == pytest.approx((centre - reach, centre + reach), abs=1e-9)


def test_without_trials_wilsons_interval_is_all_from_0_to_1():
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)


def answers(both, lost, gained, neither):
    """Two runs on the same images, by number of images: right in both, only in the first, only in the second."""
    first = [True] * both + [True] * lost + [False] * gained + [False] * neither
    second = [True] * both + [False] * lost + [True] * gained + [False] * neither
    order = np.random.default_rng(0).permutation(len(first))
    return np.array(first)[order].tolist(), np.array(second)[order].tolist()


def test_paired_difference_by_hand():
    """Half a count in each cell: 30.5 and 20.5 of 1002; the variance of their difference is that of a multinomial."""
    found = paired_difference(*answers(900, 30, 20, 50))
    p, q = 30.5 / 1002, 20.5 / 1002
    reach = 1.959963984540054 * np.sqrt((p + q - (q - p) ** 2) / 1002)
    assert (found.value, found.low, found.high) == pytest.approx((-0.01, q - p - reach, q - p + reach))


def test_runs_that_agree_differ_less_surely_than_runs_on_other_images():
    """With the same accuracies, the paired interval is the narrower the more often both are right on the same image."""
    alike, unlike = (paired_difference(*answers(*cells)) for cells in ((890, 10, 10, 90), (800, 100, 100, 0)))
    assert alike.high - alike.low < 0.4 * (unlike.high - unlike.low)
    equal = paired_difference(*answers(900, 0, 0, 100))
    assert equal.value == 0
    assert equal.low < 0 < equal.high


@pytest.mark.parametrize(("lost", "gained"), [(0, 5), (3, 9), (7, 7), (150, 120)])
def test_mcnemar_by_adding_up_the_binomial(lost, gained):
    n, less = lost + gained, min(lost, gained)
    tail = sum(float(stats.binom.pmf(k, n, 0.5)) for k in range(less + 1))
    expected = min(1.0, 2 * tail)
    assert mcnemar(*answers(50, lost, gained, 10)) == pytest.approx(expected)


def test_mcnemar_without_any_disagreement_is_one():
    assert mcnemar([True, False], [True, False]) == 1.0


def test_results_of_other_images_are_not_paired():
    with pytest.raises(ValueError):
        paired_difference([True, False], [True])
