"""How often each 95 % interval covers the truth, at the numbers of rounds that the workbook really uses.

Every test draws measurements whose truth is known, asks the package for their interval, and counts the hits. Methods
that are too narrow fail: the last tests show it for the bootstrap, which the workbook used before.
"""

import numpy as np
import pytest
from helper_records import make_run
from scipy import stats

from ddp_workbook.analysis.costmodel import SETTLED_WIDTH, ModelCosts, check_steps, fit_link
from ddp_workbook.analysis.statistics import (
    independent_difference,
    mean_interval,
    median_interval,
    paired_difference,
    round_means,
    wilson,
)
from ddp_workbook.measurement.batch_sweep import ROUNDS, ROUNDS_AT_MOST
from ddp_workbook.records.timing import AllReduceBenchmark, AllReduceTimes, BatchSweep, SweepPoint

TARGET = 0.93  # at least, where 95 % is printed
LOOKS = tuple(ROUNDS * times for times in range(1, ROUNDS_AT_MOST + 1))  # after so many rounds the sweep may stop


def coverage(intervals, truth):
    """Share of the intervals that hold the truth."""
    return np.mean([one.low <= truth <= one.high for one in intervals])


def noise(kind, spread, shape, seed=0):
    """Positive factors around 1: their median is 1, except for "exponential", whose mean is 1."""
    draws = np.random.default_rng(seed)
    if kind == "normal":
        return 1 + spread * draws.standard_normal(shape)
    if kind == "exponential":
        return draws.exponential(size=shape)
    return np.exp(spread * draws.standard_normal(shape))


# Medians: speedups, exposed communication


@pytest.mark.parametrize("kind", ["normal", "lognormal", "exponential"])
@pytest.mark.parametrize("n", [6, 7, 9, 10, 25])
def test_median_interval_covers_the_truth_as_often_as_it_says(n, kind):
    truth = np.log(2) if kind == "exponential" else 1
    intervals = map(median_interval, noise(kind, 0.4, (3000, n)))
    assert coverage(intervals, truth) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 3000)


def rounds_taken(ratios):
    """How many of these rounds the batch-size sweep takes: it looks at LOOKS only, and stops when it is settled."""
    for n in LOOKS:
        found = median_interval(ratios[:n])
        if found.high - found.low <= SETTLED_WIDTH * found.value:
            break
    return n


@pytest.mark.parametrize("kind", ["normal", "lognormal"])
@pytest.mark.parametrize("spread", [0.03, 0.06, 0.08, 0.1, 0.12, 0.2])
def test_stopping_when_it_is_settled_does_not_spoil_the_median(kind, spread):
    """An interval that happens to be narrow ends the measurement. Looking after every round would cost more."""
    intervals = [median_interval(one[: rounds_taken(one)]) for one in noise(kind, spread, (3000, LOOKS[-1]))]
    assert coverage(intervals, 1) >= TARGET


# Means: steps of the batch-size sweep, all-reduces


def steps_with_round_effect(kind, rounds, steps, trials=2500, spread=0.05):
    """(trials, rounds x steps) and their true mean. The rounds differ as much as the steps of one round do."""
    by_round = noise(kind, spread, (trials, rounds, 1), seed=1)
    values = (by_round * noise(kind, spread, (trials, rounds, steps), seed=2)).reshape(trials, -1)
    return values, (np.exp(spread**2 / 2) ** 2 if kind == "lognormal" else 1)


@pytest.mark.parametrize("kind", ["normal", "lognormal"])
@pytest.mark.parametrize(("rounds", "steps"), [(6, 2), (6, 10), (12, 2), (18, 2)])
def test_the_mean_of_rounds_is_covered_although_the_rounds_differ(kind, rounds, steps):
    values, truth = steps_with_round_effect(kind, rounds, steps, spread=0.15)
    assert coverage([mean_interval(round_means(one, rounds)) for one in values], truth) >= TARGET


@pytest.mark.parametrize("spread", [0.06, 0.1, 0.15])
def test_stopping_when_it_is_settled_does_not_spoil_the_mean(spread):
    """The speedups decide when to stop; the mean of the distributed step is part of them."""
    serial, synced = noise("normal", spread, (2, 2500, LOOKS[-1]), seed=3)
    taken = [rounds_taken(ratios) for ratios in serial / synced]
    assert coverage([mean_interval(one[:n]) for one, n in zip(synced, taken, strict=True)], 1) >= TARGET


@pytest.mark.parametrize(
    ("repeats", "kind", "spread"),
    [
        (5, "normal", 0.1),
        (5, "lognormal", 0.2),
        (16, "lognormal", 0.4),
        (64, "exponential", 1),
        (100, "exponential", 1),
    ],
)
def test_the_mean_of_repeated_all_reduces(repeats, kind, spread):
    """As measured: few large ones that vary by 5 to 20 %, many small ones of which some wait for a core."""
    truth = np.exp(spread**2 / 2) if kind == "lognormal" else 1
    assert coverage(map(mean_interval, noise(kind, spread, (4000, repeats))), truth) >= TARGET


# Shares: accuracies and their differences


def exact_coverage(n, p):
    """Wilson's coverage, without drawing: the sum of the probabilities of all counts whose interval holds p."""
    middle, reach = n * p, 6 * np.sqrt(n * p * (1 - p)) + 2
    counts = range(max(0, int(middle - reach)), min(n, int(middle + reach)) + 1)
    kept = [k for k in counts if wilson(k, n).low <= p <= wilson(k, n).high]
    return stats.binom.pmf(kept, n, p).sum()


@pytest.mark.parametrize("p", [0.6, 0.8, 0.95])
@pytest.mark.parametrize("n", [36, 1000, 10_000])
def test_wilson_covers_an_accuracy(n, p):
    assert exact_coverage(n, p) >= TARGET


def test_wilson_on_36_images_covers_accuracies_on_average():
    """With so few images the coverage jumps with the accuracy (Brown, Cai & DasGupta 2001): some single ones miss."""
    assert np.mean([exact_coverage(36, p) for p in np.linspace(0.6, 0.99, 40)]) >= 0.945


def two_runs(n, accuracy, lost, gained, trials):
    """Right or wrong (trials, n) of two runs: the second has `lost` of all images wrong and `gained` right instead."""
    kinds = np.random.default_rng(0).choice(
        4, size=(trials, n), p=[accuracy - lost, lost, gained, 1 - accuracy - gained]
    )
    return zip((kinds == 0) | (kinds == 1), (kinds == 0) | (kinds == 2), strict=True)


@pytest.mark.parametrize(
    ("n", "accuracy", "lost", "gained"),
    [(360, 0.97, 0.02, 0.01), (360, 0.97, 0.01, 0.01), (10_000, 0.82, 0.065, 0.06), (10_000, 0.99, 0.004, 0.003)],
)
def test_the_paired_difference_of_two_accuracies(n, accuracy, lost, gained):
    intervals = [paired_difference(*runs) for runs in two_runs(n, accuracy, lost, gained, trials=1000)]
    assert coverage(intervals, gained - lost) >= TARGET


@pytest.mark.parametrize(("n", "accuracy"), [(360, 0.95), (10_000, 0.82)])
def test_the_difference_of_two_accuracies_on_different_images(n, accuracy):
    draws = np.random.default_rng(0).binomial(n, [[accuracy], [accuracy - 0.02]], (2, 3000)) / n
    assert coverage([independent_difference(p, q, n) for p, q in draws.T], -0.02) >= TARGET


def test_for_the_same_images_the_independent_difference_is_too_wide():
    """It covers nearly always, since right answers of the two runs go together; the paired one is narrower."""
    runs = list(two_runs(10_000, 0.82, 0.065, 0.06, trials=300))
    wide = [independent_difference(a.mean(), b.mean(), 10_000) for a, b in runs]
    narrow = [paired_difference(a, b) for a, b in runs]
    assert coverage(wide, -0.005) > 0.98
    assert np.mean([one.high - one.low for one in narrow]) < 0.75 * np.mean([one.high - one.low for one in wide])


# The cost model: errors of its predictions, the exposed share, predicted speedups

LATENCY, RATE, SHARE = 6e-4, 1.3e9, 0.75
GRADIENTS, BUCKETS = 90_000_000, 5
IMAGES = (8, 20, 48)
ALONE = BUCKETS * 2 * LATENCY + GRADIENTS / RATE
ALL_REDUCES = [(2**power, max(5, min(100, 2**26 // 2**power))) for power in (10, 12, 14, 16, 18, 20, 22, 24, 26, 27)]


def no_sync(images):
    """True seconds of a rank's step without communication."""
    return 0.06 + 0.002 * images


def serial(images):
    """True seconds of the serial step."""
    return 0.04 + 0.0015 * 2 * images


def draw_sweep(draws, rounds):
    """A sweep of one network: rounds in which the machine is slower or faster by 5 %, steps that vary as much.

    Small all-reduces vary as they do where some wait for a core, large ones by 7 %.
    """

    def steps(seconds, weather, count):
        return (seconds * weather[:, None] * draws.normal(1, 0.05, (rounds, count))).ravel().tolist()

    points = []
    for images in IMAGES:
        weather = draws.normal(1, 0.05, rounds)
        points.append(
            SweepPoint(
                model="resnet50",
                images=images,
                gradient_bytes=GRADIENTS,
                buckets=BUCKETS,
                serial=steps(serial(images), weather, 1),
                synced=steps(no_sync(images) + SHARE * ALONE, weather, 2),
                no_sync=steps(no_sync(images), weather, 2),
            )
        )
    samples = []
    for size, repeats in ALL_REDUCES:
        seconds, spread = 2 * LATENCY + size / RATE, 1.2 if size <= 2**20 else 0.07
        shape = 1 / spread**2  # of a gamma distribution, whose relative spread this is
        samples.append(AllReduceTimes(bytes=size, seconds=(seconds * draws.gamma(shape, 1 / shape, repeats)).tolist()))
    return BatchSweep.model_construct(
        dataset="digits",
        environment=make_run()[0].environment,
        processes=2,
        threads=1,
        all_reduce=AllReduceBenchmark(processes=2, samples=samples),
        points=points,
    )


@pytest.fixture(scope="module", params=[6, 12])
def sweeps(request):
    """300 sweeps of the same machine."""
    draws = np.random.default_rng(0)
    return [draw_sweep(draws, request.param) for _ in range(300)]


def test_the_errors_of_predicted_steps(sweeps):
    checks = [check_steps(sweep) for sweep in sweeps]
    for number, images in enumerate(IMAGES):
        step = no_sync(images) + SHARE * ALONE
        assert coverage([each[number].measured for each in checks], step) >= TARGET
        assert coverage([each[number].added for each in checks], SHARE * ALONE) >= TARGET
        assert coverage([each[number].error for each in checks], (1 - SHARE) * ALONE / step) >= TARGET
        assert coverage([each[number].corrected_error for each in checks], 0) >= TARGET


def test_the_exposed_share_and_the_predicted_speedup(sweeps):
    costs = [ModelCosts(sweep, "resnet50") for sweep in sweeps]
    assert coverage([each.exposed_share for each in costs], SHARE) >= TARGET
    for images in (16, 32):  # between the measured batch sizes
        truth = serial(images) / (no_sync(images) + SHARE * ALONE)
        found = [
            each.speedup_interval(2 * images, 2, fit_link(sweep.all_reduce))
            for each, sweep in zip(costs, sweeps, strict=True)
        ]
        assert coverage(found, truth) >= TARGET


# What these tests reject


def bootstrap(values, draws):
    """Percentile bootstrap (Efron 1979) of the mean, over single steps: (low, high) of each row."""
    picks = draws.integers(values.shape[1], size=(400, values.shape[1]))
    return np.percentile(values[:, picks].mean(axis=2), [2.5, 97.5], axis=1)


@pytest.mark.parametrize(("between_rounds", "at_most"), [(False, 0.90), (True, 0.82)])
def test_a_bootstrap_of_six_steps_in_three_rounds_is_too_narrow(between_rounds, at_most):
    """So the workbook has none. Independent steps: about 88 %. Rounds that differ as much as steps: far less."""
    if between_rounds:
        values, _ = steps_with_round_effect("normal", 3, 2, trials=2000)
    else:
        values = noise("normal", 0.05, (2000, 6))
    low, high = bootstrap(values, np.random.default_rng(0))
    assert np.mean((low <= 1) & (high >= 1)) < at_most


def test_steps_taken_for_rounds_are_too_narrow():
    values, truth = steps_with_round_effect("normal", 6, 10)
    assert coverage(map(mean_interval, values), truth) < 0.7


def test_looking_until_a_lucky_moment_is_too_narrow():
    """Who looks at a t interval after every round, and stops when it leaves out 1, reports something that is not so."""

    def stopped(rounds):
        looks = (mean_interval(rounds[:n]) for n in range(6, len(rounds) + 1))
        return next((found for found in looks if not found.low <= 1 <= found.high), mean_interval(rounds))

    assert coverage(map(stopped, noise("normal", 0.05, (1000, 60))), 1) < 0.85
