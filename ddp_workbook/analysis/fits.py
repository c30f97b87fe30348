"""The parts of the cost model: an all-reduce and a step without communication, as lines fitted to measured times.

An all-reduce of M bytes among N processes by the ring algorithm takes 2(N-1) messages of M/N bytes one after another:
2(N-1)/N * M/B + 2(N-1) * alpha, with rate B and fixed cost alpha of a message (Patarasuk & Yuan 2009).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from scipy.optimize import nnls

from ddp_workbook.records.timing import AllReduceBenchmark


@dataclass(frozen=True)
class Link:
    """What averaging costs between processes: seconds per message (fixed cost), bytes per second (rate).

    Fitted on a machine it is no property of a wire: the measured operation copies the gradients into a bucket, divides
    them, wakes the threads that communicate, and sends. For a network, the reader gives its latency and bandwidth.
    """

    latency: float
    bandwidth: float

    def all_reduce(self, size: float, processes: int, buckets: int = 1) -> float:
        """Seconds to all-reduce `size` bytes over the processes, split into `buckets` all-reduces one after another."""
        messages = 2 * (processes - 1)
        return messages / processes * size / self.bandwidth + buckets * messages * self.latency


def fit_link(measured: AllReduceBenchmark) -> Link:
    """Fixed cost and rate with the smallest relative squared error over the mean times."""
    n, messages = measured.processes, 2 * (measured.processes - 1)
    means = np.array([fmean(sample.seconds) for sample in measured.samples])
    moved = np.array([messages / n * sample.bytes for sample in measured.samples])
    design = np.stack([np.full_like(moved, messages), moved], axis=1) / means[:, None]
    (latency, seconds_per_byte), _ = nnls(design, np.ones_like(means))
    return Link(float(latency), 1 / max(float(seconds_per_byte), 1e-15))


def all_reduce_error(measured: AllReduceBenchmark, size: int, buckets: int) -> tuple[float, int]:
    """(standard error, degrees of freedom) of the seconds that the fitted link gives for such an all-reduce.

    By leaving out one measured size at a time (HC3, MacKinnon & White 1985): large sizes are measured less often than
    small ones, and no size lies exactly on the line, so the residuals are not equally large.
    """
    samples = measured.samples
    cut = [measured.model_copy(update={"samples": samples[:i] + samples[i + 1 :]}) for i in range(len(samples))]
    whole, *others = (fit_link(each).all_reduce(size, measured.processes, buckets) for each in (measured, *cut))
    return float(np.linalg.norm(np.array(others) - whole)), max(len(samples) - 2, 1)


@dataclass(frozen=True)
class StepCost:
    """Seconds of a step without communication, as a straight line over the images per process; and its gradients."""

    fixed: float
    per_image: float
    gradient_bytes: int
    buckets: int = 1

    def seconds(self, images: float) -> float:
        """Seconds of one step with so many images."""
        return self.fixed + self.per_image * images


def fit_step(images: Sequence[int], seconds: Sequence[float], gradient_bytes: int, buckets: int = 1) -> StepCost:
    """The line through measured steps with the smallest relative squared error; neither part is below zero."""
    taken = np.asarray(seconds, dtype=float)
    design = np.stack([np.ones(len(taken)), np.asarray(images, dtype=float)], axis=1) / taken[:, None]
    (fixed, per_image), _ = nnls(design, np.ones(len(taken)))
    return StepCost(float(fixed), float(per_image), gradient_bytes, buckets)


def predict_step(
    cost: StepCost, images: float, link: Link, processes: int, crowding: float = 1.0, share: float = 1.0
) -> float:
    """Seconds of a step of `processes` ranks with `images` each; `share` of the all-reduces lengthens it.

    Computing takes `crowding` times as long as in the steps to which `cost` was fitted.
    """
    all_reduce = link.all_reduce(cost.gradient_bytes, processes, cost.buckets)
    return cost.seconds(images) * crowding + max(share, 0.0) * all_reduce
