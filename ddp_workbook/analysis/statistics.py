"""Estimates with their 95 % intervals. tests/analysis/test_coverage.py simulates how often each covers the truth."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy import special, stats

from ddp_workbook.records.timing import Interval

CONFIDENCE = 0.95
NORMAL = float(special.ndtri((1 + CONFIDENCE) / 2))  # 1.96
SAMPLES_NEEDED = 6  # 1 - 2 / 2**6 = 97 %; five would give 94 %


def median_interval(samples: Sequence[float]) -> Interval:
    """Median with its exact interval from order statistics, for any distribution.

    The median lies between the k-th smallest and the k-th largest of n samples with probability 1 - 2 P(X < k), X
    binomial with n and 1/2 (Conover 1999, section 3.2). Fewer than SAMPLES_NEEDED samples cannot reach 95 %: their
    interval is their whole range.
    """
    ordered = np.sort(np.asarray(samples, dtype=float))
    k = outermost(len(ordered))
    return Interval(float(np.median(ordered)), float(ordered[k - 1]), float(ordered[-k]))


@cache
def outermost(n: int) -> int:
    """The k for which median_interval() goes from the k-th smallest to the k-th largest of n samples."""
    return max(int(stats.binom.ppf((1 - CONFIDENCE) / 2, n, 0.5)), 1)  # at least 95 %: P(X < k) <= 2.5 %


def round_means(values: Sequence[float], rounds: int) -> np.ndarray:
    """The mean of each round, (rounds,); `values` are rounds x steps in one row.

    The steps of a round share what the machine did meanwhile: they are not independent samples, the rounds are.
    """
    return np.reshape(np.asarray(values, dtype=float), (rounds, -1)).mean(axis=1)


def mean_interval(samples: Sequence[float]) -> Interval:
    """Mean of independent samples, at least two, with Student's t interval. Of repeated steps, give the round means.

    For times that are added up: the mean of a sum is the sum of the means, but medians do not add up. Where a part
    sometimes waits milliseconds for a core, the difference is large.
    """
    values = np.asarray(samples, dtype=float)
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    return t_interval(float(values.mean()), [(error, len(values) - 1)])


def deviation_interval(samples: Sequence[float]) -> Interval:
    """Standard deviation of independent normal samples, at least two, with its chi-squared interval."""
    values = np.asarray(samples, dtype=float)
    freedom, deviation = len(values) - 1, float(values.std(ddof=1))
    ends = stats.chi2.ppf([(1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2], freedom)
    low, high = (float(deviation * (freedom / end) ** 0.5) for end in ends)
    return Interval(deviation, low, high)


def t_interval(value: float, parts: Sequence[tuple[float, int]]) -> Interval:
    """A value whose error has independent parts, each with (standard error, degrees of freedom).

    Their variances are added. The degrees of freedom of the sum are those of Welch (1947) and Satterthwaite (1946).
    """
    variances = np.array([error**2 for error, _ in parts])
    total = float(variances.sum())
    if total == 0:
        return Interval(value, value, value)
    shares = variances / total
    freedom = 1 / float(np.sum(shares**2 / [degrees for _, degrees in parts]))
    reach = float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2)) * total**0.5
    return Interval(value, value - reach, value + reach)


def jackknife_error(estimates: Sequence[float]) -> float:
    """Standard error of an estimate from n rounds; `estimates` (n,) leave out one round each (Tukey 1958).

    For a mean the result is s / sqrt(n) exactly. It also works for a ratio, and where the parts of an estimate come
    from the same rounds and rise and fall together.
    """
    values, n = np.asarray(estimates, dtype=float), len(estimates)
    return float(np.sqrt((n - 1) / n * np.sum((values - values.mean()) ** 2)))


def means_without_each(values: np.ndarray) -> np.ndarray:
    """The means of the n values that leave out one each, (n,)."""
    return (values.sum() - values) / (len(values) - 1)


def spread_words(samples: int) -> str:
    """Name of what median_interval() returns for so many samples."""
    return "95 % interval" if samples >= SAMPLES_NEEDED else f"range of {samples}"


def wilson(successes: int, trials: int) -> Interval:
    """Share of successes with Wilson's score interval, which stays between 0 and 1 (Wilson 1927)."""
    if trials == 0:
        return Interval(float("nan"), 0.0, 1.0)
    interval = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(successes / trials, float(interval.low), float(interval.high))


def independent_difference(first: float, second: float, trials: int) -> Interval:
    """Share `second` minus share `first`, each of `trials` independent answers, by the normal approximation."""
    reach = NORMAL * np.sqrt((first * (1 - first) + second * (1 - second)) / trials)
    return Interval(second - first, second - first - float(reach), second - first + float(reach))


def only_one_right(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int]:
    """Number of images that only the first run has right, and that only the second has.

    Both lists are right or wrong by image, for the same images in the same order. Raises ValueError otherwise.
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} images cannot be compared one by one")
    return int(np.sum(a & ~b)), int(np.sum(b & ~a))


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> Interval:
    """Accuracy of the second run minus that of the first on the same images, from right or wrong by image.

    Only images that one run has right and the other wrong count. The interval is Wald's after half a count was added
    to each cell of the 2 x 2 table, which keeps it honest where there are few such images (Agresti & Min 2005).
    """
    lost, gained = only_one_right(first, second)
    n = len(first)
    b, c, total = lost + 0.5, gained + 0.5, n + 2
    middle = (c - b) / total
    reach = NORMAL * np.sqrt((b + c) - (c - b) ** 2 / total) / total
    return Interval((gained - lost) / n, middle - float(reach), middle + float(reach))


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided p of the hypothesis that both runs are equally accurate (McNemar 1947).

    Of the images that only one of them has right, each run should then have half. 1.0 if there is none.
    """
    lost, gained = only_one_right(first, second)
    return float(stats.binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
