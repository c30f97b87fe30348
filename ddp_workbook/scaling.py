"""Speedup and efficiency with their spread, and the comparison of two runs. Needs records alone, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy import stats

from ddp_workbook.config import TrainConfig
from ddp_workbook.errors import InputError
from ddp_workbook.record import RunRecord
from ddp_workbook.timings import BenchmarkRecord

CONFIDENCE = 0.95

# What may differ between a baseline and the distributed run that is compared with it. The batch per process does, and
# must: it is the global batch that has to be the same.
FREE_FIELDS = {
    "data_dir", "results_dir", "checkpoint_dir", "batch_size", "accumulate", "device", "backend", "precision",
    "threads", "gradient_compression", "tensorboard",
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
    """Median with a percentile-bootstrap interval (Efron & Tibshirani 1993); needs at least two samples."""
    found = stats.bootstrap(
        (np.asarray(samples),), np.median, confidence_level=CONFIDENCE, method="percentile", rng=0, n_resamples=4999
    ).confidence_interval
    return Interval(float(np.median(samples)), float(found.low), float(found.high))


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


def speedup_table(record: BenchmarkRecord) -> list[SpeedupRow]:
    """Each distributed arrangement against each serial baseline."""
    rows = []
    for run in record.by_role("distributed"):
        workers = min(run.processes * run.threads, record.environment.cores)  # more processes than cores add none
        for baseline in record.by_role("serial"):
            ratio = speedup(run.images_per_second, baseline.images_per_second)
            share = efficiency(ratio, workers, baseline.processes * baseline.threads)
            rows.append(SpeedupRow(baseline.name, run.name, ratio, share))
    return rows


def over_all_cores(record: BenchmarkRecord) -> list[tuple[int, float]]:
    """(processes, speedup over the serial run on all cores) of each distributed arrangement."""
    baseline = record.by_role("serial")[-1].name
    rows = [row for row in speedup_table(record) if row.baseline == baseline]
    return [(one.processes, row.speedup.value) for one, row in zip(record.by_role("distributed"), rows, strict=True)]


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
