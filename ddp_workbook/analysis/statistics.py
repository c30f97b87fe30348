"""Estimates with their 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from ddp_workbook.records.timing import Interval

CONFIDENCE = 0.95
SAMPLES_NEEDED = 6  # 1 - 2 / 2**6 = 97 %; five would give 94 %


def median_interval(samples: Sequence[float]) -> Interval:
    """Median with its exact interval from order statistics, for any distribution.

    The median lies between the k-th smallest and the k-th largest of n samples with probability 1 - 2 P(X < k), X
    binomial with n and 1/2 (Conover 1999, section 3.2). Fewer than SAMPLES_NEEDED samples cannot reach 95 %: their
    interval is their whole range.
    """
    ordered = np.sort(np.asarray(samples, dtype=float))
    n = len(ordered)
    k = max(int(stats.binom.ppf((1 - CONFIDENCE) / 2, n, 0.5)), 1)  # at least 95 %: P(X < k) <= 2.5 %
    return Interval(float(np.median(ordered)), float(ordered[k - 1]), float(ordered[n - k]))


def mean_interval(samples: Sequence[float]) -> Interval:
    """Mean with its percentile bootstrap interval (Efron 1979); the same samples always give the same interval.

    For times that are added up: the mean of a sum is the sum of the means, but medians do not add up. Where a part
    sometimes waits milliseconds for a core, the difference is large.
    """
    values = np.asarray(samples, dtype=float)
    if np.ptp(values) == 0:
        return Interval(float(values[0]), float(values[0]), float(values[0]))
    result = stats.bootstrap((values,), np.mean, confidence_level=CONFIDENCE, method="percentile", rng=0)
    return Interval(float(values.mean()), *map(float, result.confidence_interval))


def spread_words(samples: int) -> str:
    """Name of what median_interval() returns for so many samples."""
    return "95 % interval" if samples >= SAMPLES_NEEDED else f"range of {samples}"


def wilson(successes: int, trials: int) -> Interval:
    """Share of successes with Wilson's score interval, which stays between 0 and 1 (Wilson 1927)."""
    if trials == 0:
        return Interval(float("nan"), 0.0, 1.0)
    interval = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(successes / trials, float(interval.low), float(interval.high))
