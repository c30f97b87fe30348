"""Cost model: predicts step times and speedups, and compares them with measured ones.

A step takes as long as one under no_sync plus the exposed share of its all-reduces. Share 1 is the plain sum: an upper
bound where a part of the communication is hidden behind computing. The share is measured: it does not follow from the
parts. Times are means here, not medians: means add up (statistics.mean_interval).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import numpy as np

from ddp_workbook.analysis.clusters import BACKWARD_SHARE, Cluster, exposed_seconds, fill_buckets
from ddp_workbook.analysis.fits import Link, all_reduce_error, fit_link, fit_step, predict_step
from ddp_workbook.analysis.statistics import (
    jackknife_error,
    mean_interval,
    means_without_each,
    median_interval,
    round_means,
    t_interval,
)
from ddp_workbook.errors import InputError
from ddp_workbook.records.timing import BatchSweep, Interval, StepBreakdown, StepTimes, SweepPoint
from ddp_workbook.specs import MODELS

SETTLED_WIDTH = 0.15  # of an interval, relative to its value
FEWEST_IMAGES = 8  # per process in a prediction: no sweep measures less, and BatchNorm needs some images to average


def bytes_moved(size: int, processes: int) -> float:
    """Bytes that each process sends in a ring all-reduce: more with every process, but never twice the size."""
    return 2 * (processes - 1) / processes * size


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
    return median_interval(np.asarray(point.serial) / round_means(point.synced, len(point.serial)))


def is_settled(point: SweepPoint) -> bool:
    """Whether the interval of its speedup is narrow enough to be read as a number."""
    speedup = measured_speedup(point)
    return speedup.high - speedup.low <= SETTLED_WIDTH * speedup.value


def amdahl(serial_share: float, processes: Sequence[int]) -> np.ndarray:
    """Speedup when the serial share of the work does not shrink (Amdahl 1967)."""
    return 1 / (serial_share + (1 - serial_share) / np.asarray(processes))


def points_of(sweep: BatchSweep, model: str) -> list[SweepPoint]:
    """A model's points, by batch size. Raises InputError for fewer than two batch sizes: they make no line."""
    points = sweep.of_model(model)
    if len({point.images for point in points}) < 2:
        raise InputError(f"the batch-size sweep has fewer than two batch sizes of {model}; run notebook 04 again")
    return points


def added_by_round(point: SweepPoint) -> np.ndarray:
    """Seconds that gradient synchronization added to a step, mean of each round: (rounds,)."""
    rounds = len(point.serial)
    return round_means(point.synced, rounds) - round_means(point.no_sync, rounds)


def alone(point: SweepPoint, sweep: BatchSweep, link: Link) -> float:
    """Seconds that the all-reduces of a step take by the fitted link, with nothing else to do."""
    return link.all_reduce(point.gradient_bytes, sweep.processes, point.buckets)


def exposed_share(points: Sequence[SweepPoint], sweep: BatchSweep) -> float:
    """What synchronization added to these points' steps, as a share of their all-reduces alone.

    Below 1 a part is hidden. Above 1, averaging costs more than its all-reduces: they also slow down the computing.
    """
    link = fit_link(sweep.all_reduce)
    total = sum(alone(point, sweep, link) for point in points)
    return float(sum(added_by_round(point).mean() for point in points)) / total


def share_errors(points: Sequence[SweepPoint], sweep: BatchSweep) -> list[tuple[float, int]]:
    """(Standard error, degrees of freedom) of exposed_share() from each point's rounds; the link counts as known."""
    link = fit_link(sweep.all_reduce)
    total = sum(alone(point, sweep, link) for point in points)
    rounds = [added_by_round(point) for point in points]
    return [(jackknife_error(means_without_each(added)) / total, len(added) - 1) for added in rounds]


@dataclass(frozen=True)
class Check:
    """A measured step beside two predictions, in seconds: the plain sum, and the sum with the exposed share.

    `predicted` is the step under no_sync plus all of `all_reduce`, which is what the fitted link gives. `corrected` has
    only `exposed_share` of it, fitted on the other batch sizes of the same network: this point had no part in it.
    `added` is what synchronization really added. Errors are relative to the measured mean; their intervals hold the
    noise of the rounds and of the fit.
    """

    model: str
    images: int
    predicted: float
    measured: Interval
    all_reduce: float
    added: Interval
    error: Interval
    exposed_share: float
    corrected: float
    corrected_error: Interval


def check_steps(sweep: BatchSweep) -> list[Check]:
    """Every point of the sweep against its predictions. Raises InputError where a network has one batch size only."""
    return [_check(point, sweep) for point in sweep.points]


def _check(point: SweepPoint, sweep: BatchSweep) -> Check:
    rounds, link = len(point.serial), fit_link(sweep.all_reduce)
    synced, no_sync = round_means(point.synced, rounds), round_means(point.no_sync, rounds)
    others = [other for other in points_of(sweep, point.model) if other.images != point.images]
    share, errors = exposed_share(others, sweep), share_errors(others, sweep)
    all_reduce = alone(point, sweep, link)
    link_error, freedom = all_reduce_error(sweep.all_reduce, point.gradient_bytes, point.buckets)
    measured = float(synced.mean())

    def error_of(communication: float, others: list[tuple[float, int]]) -> Interval:
        """Of no_sync + communication; `others` are errors of communication. A round's two kinds of steps are paired."""
        value = (no_sync.mean() + communication) / measured - 1
        ratios = (means_without_each(no_sync) + communication) / means_without_each(synced)
        own = jackknife_error(ratios), rounds - 1
        return t_interval(float(value), [own, *((error / measured, degrees) for error, degrees in others)])

    return Check(
        model=point.model,
        images=point.images,
        predicted=float(no_sync.mean()) + all_reduce,
        measured=mean_interval(synced),
        all_reduce=all_reduce,
        added=mean_interval(synced - no_sync),
        error=error_of(all_reduce, [(link_error, freedom)]),
        exposed_share=share,
        corrected=float(no_sync.mean()) + share * all_reduce,
        # the link's own error cancels: it is in all_reduce and, the other way round, in the share
        corrected_error=error_of(share * all_reduce, [(all_reduce * error, n) for error, n in errors]),
    )


@dataclass(frozen=True)
class ModelVerdict:
    """How one network's predictions did, over its batch sizes; errors are relative."""

    model: str
    mean_error: float
    """Of the plain sum; positive: too long."""
    positive: int
    """Points for which the plain sum is too long."""
    negative: int
    mean_size_of_error: float
    """Mean of the errors without their signs."""
    mean_corrected_error: float
    """Of the sum with the exposed share."""
    mean_size_of_corrected_error: float

    @property
    def text(self) -> str:
        """Both predictions judged in two sentences."""
        points, word, count = self.positive + self.negative, "long", self.positive
        if self.negative > self.positive:
            word, count = "short", self.negative
        return (
            f"{MODELS[self.model].label}: the sum is too {word} in {count} of {points} points (mean error "
            f"{round(100 * self.mean_error):+d} %). With the exposed share fitted on the other batch sizes: mean error "
            f"{round(100 * self.mean_corrected_error):+d} %, mean size of the errors "
            f"{round(100 * self.mean_size_of_corrected_error)} %."
        )


def judge(checks: Sequence[Check]) -> list[ModelVerdict]:
    """One verdict for each network, in the order of the checks."""
    verdicts = []
    for model in dict.fromkeys(check.model for check in checks):
        errors = np.array([check.error.value for check in checks if check.model == model])
        corrected = np.array([check.corrected_error.value for check in checks if check.model == model])
        verdicts.append(
            ModelVerdict(
                model=model,
                mean_error=float(errors.mean()),
                positive=int(np.sum(errors > 0)),
                negative=int(np.sum(errors <= 0)),
                mean_size_of_error=float(np.abs(errors).mean()),
                mean_corrected_error=float(corrected.mean()),
                mean_size_of_corrected_error=float(np.abs(corrected).mean()),
            )
        )
    return verdicts


class ModelCosts:
    """One model's lines through the points of the sweep: serial on all cores, and one rank beside the others."""

    def __init__(self, sweep: BatchSweep, model: str) -> None:
        self.sweep, self.model, self.points = sweep, model, points_of(sweep, model)
        images = [point.images for point in self.points]
        size, buckets = self.points[0].gradient_bytes, self.points[0].buckets
        global_batches = [sweep.processes * count for count in images]
        self.serial = fit_step(global_batches, [fmean(point.serial) for point in self.points], size, buckets)
        self.rank = fit_step(images, [fmean(point.no_sync) for point in self.points], size, buckets)
        self._share = exposed_share(self.points, sweep)
        machine = sweep.environment
        self.on_cpu = machine.device == "cpu"
        self.cores = max(machine.cores // sweep.threads if self.on_cpu else machine.accelerator_count, 1)

    @property
    def exposed_share(self) -> Interval:
        """Exposed share of the all-reduces over all batch sizes, with the noise of the rounds and of the link."""
        point, link = self.points[0], fit_link(self.sweep.all_reduce)
        error, freedom = all_reduce_error(self.sweep.all_reduce, point.gradient_bytes, point.buckets)
        of_link = self._share * error / alone(point, self.sweep, link), freedom
        return t_interval(self._share, [*share_errors(self.points, self.sweep), of_link])

    def crowding(self, processes: int) -> float:
        """How many times as long as in the sweep computing takes: ranks beyond the cores take turns, there too."""
        return max(1.0, processes / self.cores) / max(1.0, self.sweep.processes / self.cores)

    def speedup_here(self, batch: int, processes: int, link: Link) -> float:
        """Predicted speedup over one process on all cores: `processes` ranks of this machine split a global batch.

        The exposed share of the all-reduces is that of the sweep, whatever the number of processes.
        """
        if processes == 1:
            return 1.0
        step = predict_step(self.rank, batch / processes, link, processes, self.crowding(processes), self._share)
        return self.serial.seconds(batch) / step

    def speedup_interval(self, batch: int, processes: int, link: Link) -> Interval:
        """speedup_here() with the noise of the sweep's rounds; the link, and that the model is right, are assumed.

        The interval is computed for the logarithm: a speedup is a ratio, and never negative.
        """

        def logarithm(costs: ModelCosts) -> float:
            return math.log(costs.speedup_here(batch, processes, link))

        errors = [(jackknife_error([*map(logarithm, cut)]), len(cut) - 1) for cut in self._without_each_round]
        interval = t_interval(logarithm(self), errors)
        return Interval(*(math.exp(end) for end in (interval.value, interval.low, interval.high)))

    @cached_property
    def _without_each_round(self) -> list[list[ModelCosts]]:
        """For each point and each of its rounds: the costs without that round."""
        return [
            [ModelCosts(self.sweep.without_round(point, number), self.model) for number in range(len(point.serial))]
            for point in self.points
        ]

    def step_on_network(self, images: float, processes: int, network: Link | Cluster) -> float:
        """Predicted seconds of a step of machines like this one, one rank on each, with `images` each.

        On accelerators the all-reduces run beside backward, which fills its buckets evenly. On CPUs nothing is hidden:
        what a network card and the cores can do at the same time was not measured.
        """
        seconds = self.serial.seconds(images)
        backward = 0.0 if self.on_cpu else BACKWARD_SHARE * seconds
        buckets = fill_buckets([(self.serial.gradient_bytes, 1.0)], backward, self.serial.buckets)
        return seconds + exposed_seconds(buckets, network, processes)

    def speedup_on_network(self, batch: int, processes: int, network: Link | Cluster) -> float:
        """Predicted speedup over one machine, where N machines split a batch (strong scaling)."""
        return self.serial.seconds(batch) / self.step_on_network(batch / processes, processes, network)

    def weak_speedup_on_network(self, batch: int, processes: int, network: Link | Cluster) -> float:
        """Predicted throughput of N machines with a whole batch each, over that of one: N T(1, batch) / T(N, N batch).

        Divided by N it is the weak-scaling efficiency as DDP users state it.
        """
        return processes * self.serial.seconds(batch) / self.step_on_network(batch, processes, network)


def serial_share(costs: ModelCosts, batch: int) -> float:
    """Share of a serial step that more processes do not shorten: the part that does not depend on the images."""
    return costs.serial.fixed / costs.serial.seconds(batch)
