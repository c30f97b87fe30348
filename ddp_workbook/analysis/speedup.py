"""Speedup and efficiency with their spread, and the comparison of two runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ddp_workbook.analysis.statistics import independent_difference, median_interval, paired_difference
from ddp_workbook.config import NUMERICS, PATHS, PLACEMENT, SHARDING, SPLIT, first_difference
from ddp_workbook.errors import InputError
from ddp_workbook.records.run import Environment, RunRecord
from ddp_workbook.records.timing import BenchmarkRecord, Configuration, Interval

HARDWARE = ("cpu", "cores", "memory_bytes", "device", "accelerator", "accelerator_count", "os", "torch")
EQUIVALENCE_MARGIN = 0.015  # between the accuracies of two runs; fixed here, not after a look at the results


def speedup(faster: Sequence[float], baseline: Sequence[float]) -> Interval:
    """Ratio of two interleaved rates: the median of the ratios of each round.

    Pairing by round cancels what slows the whole machine for a while.
    """
    return median_interval(np.asarray(faster) / np.asarray(baseline))


def efficiency(ratio: Interval, workers: int, baseline_workers: int) -> Interval:
    """Speedup as a share of the ideal one, which is the ratio of the numbers of threads (or GPUs)."""
    ideal = workers / baseline_workers
    return Interval(ratio.value / ideal, ratio.low / ideal, ratio.high / ideal)


def accuracy_difference(first: RunRecord, second: RunRecord) -> Interval:
    """Test accuracy of `second` minus that of `first`.

    By the paired method, image by image, where paired_answers() has both runs' answers. Records of earlier versions
    have none: then by the normal approximation for two independent samples, which is usually too wide, since both runs
    saw the same images. Either covers only the choice of test images: another seed would change both accuracies too,
    and one run each cannot show by how much.
    """
    answers = paired_answers(first, second)
    if answers:
        return paired_difference(*answers)
    return independent_difference(first.test_accuracy, second.test_accuracy, max(first.dataset.test_images, 1))


def paired_answers(first: RunRecord, second: RunRecord) -> tuple[list[bool], list[bool]] | None:
    """Both runs' right and wrong answers on the same test images; None where a record does not have them."""
    bits = first.correct_bits, second.correct_bits
    same_images = first.dataset.fingerprint == second.dataset.fingerprint
    return bits if same_images and bits[0] and bits[1] else None


def is_equivalent(difference: Interval) -> bool:
    """Whether two accuracies are shown to be equal up to EQUIVALENCE_MARGIN: the whole interval lies inside it.

    A 95 % interval makes this a stricter test than the usual two one-sided ones of 5 % (Schuirmann 1987).
    """
    return difference.low >= -EQUIVALENCE_MARGIN and difference.high <= EQUIVALENCE_MARGIN


@dataclass(frozen=True)
class SpeedupRow:
    """One comparison: `run` against `baseline`."""

    baseline: str
    run: str
    speedup: Interval
    efficiency: Interval


def workers(configuration: Configuration, machine: Environment) -> int:
    """Cores, or accelerators, that a configuration keeps busy; further processes add none."""
    if machine.device != "cpu":
        return min(configuration.processes, max(machine.accelerator_count, 1))
    return min(configuration.processes * configuration.threads, machine.cores)


def speedup_table(record: BenchmarkRecord) -> list[SpeedupRow]:
    """Each distributed configuration against each serial baseline."""
    rows = []
    for run in record.by_role("distributed"):
        for baseline in record.by_role("serial"):
            ratio = speedup(run.images_per_second, baseline.images_per_second)
            share = efficiency(ratio, workers(run, record.environment), workers(baseline, record.environment))
            rows.append(SpeedupRow(baseline.name, run.name, ratio, share))
    return rows


def over_all_cores(record: BenchmarkRecord) -> list[tuple[int, Interval]]:
    """(processes, speedup over the serial run on all cores) of each distributed configuration."""
    baseline = record.by_role("serial")[-1].name
    rows = [row for row in speedup_table(record) if row.baseline == baseline]
    return [(run.processes, row.speedup) for run, row in zip(record.by_role("distributed"), rows, strict=True)]


def verdict(speedup: Interval) -> str:
    """The comparison in words, decided by the whole interval, not by its middle.

    An end that is printed as 1.00 is nearly 1, and the words say so.
    """
    if speedup.low <= 1 <= speedup.high:
        return "not distinguishable"
    word, end = ("faster", speedup.low) if speedup.low > 1 else ("slower", speedup.high)
    return f"{word}, but the interval nearly touches 1" if f"{end:.2f}" == "1.00" else word


def upper_bound_shares(record: BenchmarkRecord) -> dict[str, Interval]:
    """For each distributed configuration: its rate as a share of the same processes' rate without communication."""
    pairs = zip(record.by_role("distributed"), record.by_role("no-communication"), strict=True)
    return {run.name: speedup(run.images_per_second, bound.images_per_second) for run, bound in pairs}


def require_comparable(baseline: RunRecord, distributed: RunRecord) -> None:
    """Raise InputError, naming the field, when two runs differ in more than how the work was split."""
    checks = [(name, getattr(baseline, name), getattr(distributed, name)) for name in ("recipe", "parameters")]
    per_class = ([sum(row) for row in run.confusion] for run in (baseline, distributed))
    checks.append(("the number of test images of each class", *per_class))
    for part, names in (
        ("dataset", ("name", "fingerprint", "train_images", "test_images", "classes")),
        ("environment", HARDWARE),
        ("world", ("precision", "global_batch")),
    ):
        first, second = getattr(baseline, part), getattr(distributed, part)
        checks += [(f"{part}.{name}", getattr(first, name), getattr(second, name)) for name in names]
    # The batch per process differs, and must: the global batch has to be the same.
    name = first_difference(baseline.config, distributed.config, PATHS | PLACEMENT | SHARDING | NUMERICS | SPLIT)
    if name:
        checks.append((f"config.{name}", getattr(baseline.config, name), getattr(distributed.config, name)))
    for name, first, second in checks:
        if first != second:
            raise InputError(
                f"these runs cannot be compared: {name} is {first!r:.40} in the baseline and {second!r:.40} in the "
                f"distributed run; train one of them again with the other's setting"
            )
