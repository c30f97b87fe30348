"""Speedup and efficiency with their spread, and the comparison of two runs. Needs records alone, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy import stats

from ddp_workbook.config import TrainConfig
from ddp_workbook.errors import InputError
from ddp_workbook.record import Environment, RunRecord
from ddp_workbook.timings import Arrangement, BenchmarkRecord

CONFIDENCE = 0.95
SAMPLES_NEEDED = 6  # 1 - 2 / 2**6 = 97 %; five would give 94 %

# What may differ between a baseline and the distributed run that is compared with it. The batch per process does, and
# must: it is the global batch that has to be the same.
FREE_FIELDS = {
    "data_dir", "results_dir", "checkpoint_dir", "batch_size", "accumulate", "device", "backend", "precision",
    "threads", "averaging", "gradient_compression", "tensorboard",
}  # fmt: skip
HARDWARE = ("cpu", "cores", "memory_bytes", "device", "accelerator", "accelerator_count", "os", "torch")


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def median_interval(samples: Sequence[float]) -> Interval:
    """Median with its exact interval from order statistics, which assumes nothing about the distribution.

    The k-th smallest and k-th largest of n samples hold the median between them with probability 1 - 2 P(X < k), X
    binomial with n and 1/2 (Conover 1999, section 3.2). Fewer than SAMPLES_NEEDED samples cannot reach 95 %: they get
    their whole range.
    """
    ordered = np.sort(np.asarray(samples, dtype=float))
    n = len(ordered)
    k = max(int(stats.binom.ppf((1 - CONFIDENCE) / 2, n, 0.5)), 1)  # at least 95 %: P(X < k) <= 2.5 %
    return Interval(float(np.median(ordered)), float(ordered[k - 1]), float(ordered[n - k]))


def mean_interval(samples: Sequence[float]) -> Interval:
    """Mean with its percentile bootstrap interval (Efron 1979), the same whenever it is asked of the same samples.

    For times that are added up: what several parts take together is on average the sum of their means, and nothing
    of the kind holds for medians. Where now and then a part waits milliseconds for a core, that is a large difference.
    """
    values = np.asarray(samples, dtype=float)
    if np.ptp(values) == 0:
        return Interval(float(values[0]), float(values[0]), float(values[0]))
    found = stats.bootstrap((values,), np.mean, confidence_level=CONFIDENCE, method="percentile", rng=0)
    return Interval(float(values.mean()), *map(float, found.confidence_interval))


def spread_words(samples: int) -> str:
    """What median_interval's ends are for so many samples."""
    return "95 % interval" if samples >= SAMPLES_NEEDED else f"range of {samples}"


def speedup(faster: Sequence[float], baseline: Sequence[float]) -> Interval:
    """Ratio of two rates that were measured in turns: the median of the ratios of each round.

    Pairing by round cancels what slows the whole machine for a while.
    """
    return median_interval(np.asarray(faster) / np.asarray(baseline))


def efficiency(ratio: Interval, workers: int, baseline_workers: int) -> Interval:
    """Speedup as a share of what that many times the threads (or GPUs) could give at best."""
    ideal = workers / baseline_workers
    return Interval(ratio.value / ideal, ratio.low / ideal, ratio.high / ideal)


def wilson(successes: int, trials: int) -> Interval:
    """Share with Wilson's score interval, which stays inside 0 to 1 (Wilson 1927)."""
    if trials == 0:
        return Interval(float("nan"), 0.0, 1.0)
    found = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(successes / trials, float(found.low), float(found.high))


def accuracy_difference(first: RunRecord, second: RunRecord) -> Interval:
    """Test accuracy of `second` minus that of `first`, by the normal approximation for two independent samples.

    It covers the choice of test images alone. Both runs see the same ones, which usually makes the true interval
    narrower; another seed would move either accuracy too, and with one run each nothing here can tell by how much.
    """
    n = first.dataset.test_images
    p, q = first.test_accuracy, second.test_accuracy
    reach = stats.norm.ppf((1 + CONFIDENCE) / 2) * np.sqrt((p * (1 - p) + q * (1 - q)) / n)
    return Interval(q - p, q - p - float(reach), q - p + float(reach))


@dataclass(frozen=True)
class SpeedupRow:
    """One comparison: `run` against `baseline`."""

    baseline: str
    run: str
    speedup: Interval
    efficiency: Interval


def workers(one: Arrangement, machine: Environment) -> int:
    """Cores, or accelerators, that an arrangement keeps busy; processes beyond them add none."""
    if machine.device != "cpu":
        return min(one.processes, max(machine.accelerator_count, 1))
    return min(one.processes * one.threads, machine.cores)


def speedup_table(record: BenchmarkRecord) -> list[SpeedupRow]:
    """Each distributed arrangement against each serial baseline."""
    rows = []
    for run in record.by_role("distributed"):
        for baseline in record.by_role("serial"):
            ratio = speedup(run.images_per_second, baseline.images_per_second)
            share = efficiency(ratio, workers(run, record.environment), workers(baseline, record.environment))
            rows.append(SpeedupRow(baseline.name, run.name, ratio, share))
    return rows


def over_all_cores(record: BenchmarkRecord) -> list[tuple[int, Interval]]:
    """(processes, speedup over the serial run on all cores) of each distributed arrangement."""
    baseline = record.by_role("serial")[-1].name
    rows = [row for row in speedup_table(record) if row.baseline == baseline]
    return [(one.processes, row.speedup) for one, row in zip(record.by_role("distributed"), rows, strict=True)]


def verdict(speedup: Interval) -> str:
    """A comparison in one word or two, chosen by the whole interval and not by its middle."""
    if speedup.low > 1:
        return "faster"
    return "slower" if speedup.high < 1 else "not distinguishable"


def bound_shares(record: BenchmarkRecord) -> dict[str, Interval]:
    """By distributed arrangement: its rate as a share of the same processes' rate without communication."""
    pairs = zip(record.by_role("distributed"), record.by_role("bound"), strict=True)
    return {run.name: speedup(run.images_per_second, bound.images_per_second) for run, bound in pairs}


def require_comparable(baseline: RunRecord, distributed: RunRecord) -> None:
    """Raise InputError, naming the field, when two runs differ in more than how the work was spread."""
    checks = [("recipe", baseline.recipe, distributed.recipe)]
    checks += [
        (f"dataset.{name}", getattr(baseline.dataset, name), getattr(distributed.dataset, name))
        for name in ("name", "fingerprint", "train_images", "test_images", "classes")
    ]
    checks += [
        (f"environment.{name}", getattr(baseline.environment, name), getattr(distributed.environment, name))
        for name in HARDWARE
    ]
    checks += [
        (f"config.{f.name}", getattr(baseline.config, f.name), getattr(distributed.config, f.name))
        for f in fields(TrainConfig)
        if f.name not in FREE_FIELDS
    ]
    checks += [
        (f"world.{name}", getattr(baseline.world, name), getattr(distributed.world, name))
        for name in ("precision", "global_batch")
    ]
    for name, first, second in checks:
        if first != second:
            raise InputError(
                f"these runs cannot be compared: {name} is {_short(first)} in the baseline and {_short(second)} in the "
                f"distributed run; train one of them again with the other's setting"
            )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
