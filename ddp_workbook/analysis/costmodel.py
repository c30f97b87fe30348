"""Cost model: predicts step times and speedups, and compares them with measured ones.

Times of parts are means here, not medians: means add up (statistics.mean_interval).

An all-reduce of M bytes among N processes by the ring algorithm takes 2(N-1) messages of M/N bytes one after another:
2(N-1)/N * M/B + 2(N-1) * alpha, with bandwidth B and latency alpha (Patarasuk & Yuan 2009).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from ddp_workbook.analysis.statistics import mean_interval, median_interval
from ddp_workbook.errors import InputError
from ddp_workbook.records.timing import (
    AllReduceBenchmark,
    BatchSweep,
    Interval,
    StepBreakdown,
    StepTimes,
    SweepPoint,
)

SETTLED_WIDTH = 0.15  # of an interval, relative to its value


@dataclass(frozen=True)
class Link:
    """Connection between the processes: seconds per message, bytes per second."""

    latency: float
    bandwidth: float

    def all_reduce(self, size: int, processes: int, buckets: int = 1) -> float:
        """Seconds to all-reduce `size` bytes over the processes, split into `buckets` all-reduces one after another."""
        messages = 2 * (processes - 1)
        return messages / processes * size / self.bandwidth + buckets * messages * self.latency


def bytes_moved(size: int, processes: int) -> float:
    """Bytes that each process sends in a ring all-reduce: more with every process, but never twice the size."""
    return 2 * (processes - 1) / processes * size


def fit_link(measured: AllReduceBenchmark) -> Link:
    """Latency and bandwidth with the smallest relative squared error over the mean times."""
    n, messages = measured.processes, 2 * (measured.processes - 1)
    means = np.array([np.mean(sample.seconds) for sample in measured.samples])
    moved = np.array([messages / n * sample.bytes for sample in measured.samples])
    design = np.stack([np.full_like(moved, messages), moved], axis=1) / means[:, None]
    (latency, seconds_per_byte), _ = nnls(design, np.ones_like(means))
    return Link(float(latency), 1 / max(float(seconds_per_byte), 1e-15))


def slowest(ranks: Sequence[Sequence[StepTimes]]) -> np.ndarray:
    """Seconds of each step on its slowest rank: no rank can begin the next step before all have synchronized."""
    return np.array([max(times) for times in zip(*([step.total for step in rank] for rank in ranks), strict=True)])


def exposed(record: StepBreakdown) -> Interval:
    """Exposed communication: paired difference of step times with and without gradient synchronization, in seconds."""
    return median_interval(slowest(record.synced) - slowest(record.no_sync))


def summed_collectives(record: StepBreakdown) -> float:
    """Sum of a step's collective times in seconds, median over steps and ranks. This is not the overhead."""
    return float(np.median([step.collectives for rank in record.synced for step in rank]))


def measured_speedup(point: SweepPoint) -> Interval:
    """Distributed over serial at one batch size, round by round: the median of the ratios."""
    by_round = np.reshape(point.synced, (len(point.serial), -1)).mean(axis=1)
    return median_interval(np.asarray(point.serial) / by_round)


def is_settled(point: SweepPoint) -> bool:
    """Whether the interval of its speedup is narrow enough to be read as a number."""
    speedup = measured_speedup(point)
    return speedup.high - speedup.low <= SETTLED_WIDTH * speedup.value


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


def predict_step(cost: StepCost, images: float, link: Link, processes: int, cores: int | None = None) -> float:
    """Seconds of a step of `processes` ranks with `images` each, with all communication added.

    Where all cores compute, none is free to communicate at the same time. Where an accelerator or idle cores hide a
    part of the communication, the prediction is too long. With `cores`, ranks beyond that number take turns: computing
    then takes processes / cores times as long.
    """
    crowding = max(1.0, processes / cores) if cores else 1.0
    return cost.seconds(images) * crowding + link.all_reduce(cost.gradient_bytes, processes, cost.buckets)


def amdahl(serial_share: float, processes: Sequence[int]) -> np.ndarray:
    """Speedup when the serial share of the work does not shrink (Amdahl 1967)."""
    return 1 / (serial_share + (1 - serial_share) / np.asarray(processes))


def gustafson(serial_share: float, processes: Sequence[int]) -> np.ndarray:
    """Speedup when the work grows with the processes and its serial share stays (Gustafson 1988)."""
    return serial_share + (1 - serial_share) * np.asarray(processes)


@dataclass(frozen=True)
class Check:
    """Predicted and measured step in seconds; and what the all-reduce should add to it, and what was added."""

    model: str
    images: int
    predicted: float
    measured: Interval
    all_reduce: float
    added: float

    @property
    def error(self) -> float:
        """Relative to the measured mean."""
        return self.predicted / self.measured.value - 1


def check_steps(sweep: BatchSweep) -> list[Check]:
    """For every point: the step under no_sync plus the all-reduce by the link, against the measured step."""
    link = fit_link(sweep.all_reduce)
    checks = []
    for point in sweep.points:
        no_sync = float(np.mean(point.no_sync))
        all_reduce = link.all_reduce(point.gradient_bytes, sweep.processes, point.buckets)
        measured = mean_interval(point.synced)
        checks.append(
            Check(point.model, point.images, no_sync + all_reduce, measured, all_reduce, measured.value - no_sync)
        )
    return checks


class ModelCosts:
    """One model's lines through the points of the sweep: serial on all cores, and one rank beside the others."""

    def __init__(self, sweep: BatchSweep, model: str) -> None:
        points = sweep.of_model(model)
        if len(points) < 2:
            raise InputError(f"the batch-size sweep has fewer than two batch sizes of {model}; run notebook 04 again")
        images = [point.images for point in points]
        size, buckets = points[0].gradient_bytes, points[0].buckets
        global_batches = [sweep.processes * count for count in images]
        self.serial = fit_step(global_batches, [float(np.mean(point.serial)) for point in points], size, buckets)
        self.rank = fit_step(images, [float(np.mean(point.no_sync)) for point in points], size, buckets)
        machine = sweep.environment
        self.cores = machine.cores // sweep.threads if machine.device == "cpu" else max(machine.accelerator_count, 1)

    def speedup_here(self, batch: int, processes: int, link: Link) -> float:
        """Predicted speedup over one process on all cores: `processes` ranks of this machine split a global batch."""
        if processes == 1:
            return 1.0
        step = predict_step(self.rank, batch / processes, link, processes, self.cores)
        return self.serial.seconds(batch) / step

    def speedup_on_network(self, batch: int, processes: int, link: Link) -> float:
        """Predicted speedup over one machine: machines like this one, one rank on all cores of each, split a batch."""
        return self.serial.seconds(batch) / predict_step(self.serial, batch / processes, link, processes)

    def weak_speedup_on_network(self, batch: int, processes: int, link: Link) -> float:
        """Predicted speedup of machines with a whole batch each, over one machine that computes all in one step."""
        return self.serial.seconds(processes * batch) / predict_step(self.serial, batch, link, processes)


def serial_share(costs: ModelCosts, batch: int) -> float:
    """Share of a serial step that more processes do not shorten: the part that does not depend on the images."""
    return costs.serial.fixed / costs.serial.seconds(batch)
