"""What several seeds show: the spread between seeds, beside that of the test set and the paired test.

Three different questions. How much do accuracies change from seed to seed on these test images (standard deviation)?
How much would the accuracy of one model change with other test images (binomial)? Do the two kinds of runs differ, on
average over seeds (Student's t on the differences, seed by seed)?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from ddp_workbook.analysis.statistics import CONFIDENCE, deviation_interval, mcnemar, mean_interval, paired_difference
from ddp_workbook.records.run import RunKind
from ddp_workbook.records.seeds import SeedStudy
from ddp_workbook.records.timing import Interval

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Spread:
    """Accuracies of several seeds: mean, smallest, largest, and the standard deviation between seeds."""

    mean: float
    smallest: float
    largest: float
    deviation: Interval

    @property
    def text(self) -> str:
        """Mean and range in percent."""
        return f"{100 * self.mean:.2f} % ({100 * self.smallest:.2f} to {100 * self.largest:.2f})"


def spread(accuracies: Sequence[float]) -> Spread:
    """The spread of at least two seeds."""
    return Spread(float(np.mean(accuracies)), min(accuracies), max(accuracies), deviation_interval(accuracies))


def images_deviation(study: SeedStudy, kind: RunKind) -> float:
    """Standard deviation of one model's accuracy over the choice of so many test images: binomial."""
    mean = float(np.mean(study.accuracies(kind)))
    return (mean * (1 - mean) / study.dataset.test_images) ** 0.5


def seed_differences(study: SeedStudy) -> list[Interval]:
    """Distributed minus baseline for each seed, with the paired interval: it covers the choice of test images."""
    pairs = zip(study.answers("baseline"), study.answers("distributed"), strict=True)
    return [paired_difference(*pair) for pair in pairs]


def mean_difference(study: SeedStudy) -> Interval:
    """Distributed minus baseline, mean over seeds, with Student's t interval: it covers the choice of seeds."""
    return mean_interval(np.subtract(study.accuracies("distributed"), study.accuracies("baseline")))


def chance_difference(study: SeedStudy) -> float:
    """Between two further runs that differ by their seeds alone: in 95 % of cases, by no more than this.

    Student's t with the deviation of both kinds of runs together: a deviation of a few seeds is itself uncertain.
    """
    accuracies = [study.accuracies(kind) for kind in ("baseline", "distributed")]
    pooled = np.mean([np.var(each, ddof=1) for each in accuracies])
    freedom = sum(len(each) - 1 for each in accuracies)
    return float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2) * (2 * pooled) ** 0.5)


def read_seeds(study: SeedStudy) -> str:
    """The study in sentences, a sentence a line."""
    base, dist = (spread(study.accuracies(kind)) for kind in ("baseline", "distributed"))
    n, images = len(study.pairs), study.dataset.test_images
    difference = mean_difference(study)
    answers = zip(study.answers("baseline"), study.answers("distributed"), strict=True)
    found = sum(mcnemar(*pair) < SIGNIFICANT for pair in answers)
    contains = "contains" if difference.low <= 0 <= difference.high else "does not contain"
    by_images = [f"{100 * images_deviation(study, kind):.2f}" for kind in ("baseline", "distributed")]
    one, several = "one process", f"{study.processes} processes"
    sentences = [
        f"{study.recipe}, {study.epochs} epochs, {n} seeds, mean (range) of the test accuracy: {one} {base.text}, "
        f"{several} {dist.text}.",
        f"Standard deviation between seeds, in points, with its 95 % interval: {base.deviation.text('.2f', 100)} for "
        f"{one}, {dist.deviation.text('.2f', 100)} for {several}.",
        f"Standard deviation by the choice of {images:,} test images (binomial): {by_images[0]} and {by_images[1]} "
        f"points.",
        f"Two runs with a seed each: in 95 % of cases the seeds alone make a difference of no more than "
        f"{100 * chance_difference(study):.2f} points.",
        f"{several} minus {one}, seed by seed: {difference.text('+.2f', 100)} points (mean, 95 % interval by Student's "
        f"t over the seeds); it {contains} 0.",
        f"McNemar's test, which sees one pair of runs and knows nothing of other seeds, has p < {SIGNIFICANT} for "
        f"{found} of {n} seeds.",
    ]
    return "\n".join(sentences)
