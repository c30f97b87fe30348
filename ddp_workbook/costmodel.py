"""Predicted step times and speedups, to be held against measured ones. Needs records alone, no torch.

Times of parts are means here, not medians: means add up (scaling.mean_interval).

An all-reduce of M bytes among N processes by the ring algorithm takes 2(N-1) messages of M/N bytes one after another:
2(N-1)/N * M/B + 2(N-1) * alpha, with bandwidth B and latency alpha (Patarasuk & Yuan 2009).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from ddp_workbook.errors import InputError
from ddp_workbook.scaling import Interval, mean_interval, median_interval
from ddp_workbook.timings import AnatomyRecord, StepTimes, SurveyRecord, SweepRecord

BIT_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9, "tbit": 1e12}
TIME_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Link:
    """What connects the processes: seconds per message, bytes per second."""

    latency: float
    bandwidth: float

    def all_reduce(self, size: int, processes: int, buckets: int = 1) -> float:
        """Seconds to average `size` bytes over the processes, in so many all-reduces one after another."""
        messages = 2 * (processes - 1)
        return messages / processes * size / self.bandwidth + buckets * messages * self.latency


def bytes_moved(size: int, processes: int) -> float:
    """Bytes that each process sends in an all-reduce: nears twice the size and never falls with more processes."""
    return 2 * (processes - 1) / processes * size


def fit_link(sweep: SweepRecord) -> Link:
    """Latency and bandwidth with the smallest relative squared error over the sweep's mean times."""
    n, messages = sweep.processes, 2 * (sweep.processes - 1)
    means = np.array([np.mean(sample.seconds) for sample in sweep.samples])
    moved = np.array([messages / n * sample.bytes for sample in sweep.samples])
    design = np.stack([np.full_like(moved, messages), moved], axis=1) / means[:, None]
    (latency, seconds_per_byte), _ = nnls(design, np.ones_like(means))
    return Link(float(latency), 1 / max(float(seconds_per_byte), 1e-15))


def parse_bandwidth(text: str) -> float:
    """Bytes per second from "10Gbit". Raises InputError for anything without a unit."""
    return _quantity(text, BIT_UNITS, "--bandwidth", "10Gbit") / 8


def parse_latency(text: str) -> float:
    """Seconds from "50us". Raises InputError for anything without a unit."""
    return _quantity(text, TIME_UNITS, "--latency", "50us")


def _quantity(text: str, units: dict[str, float], flag: str, example: str) -> float:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)(?:/s)?\s*", text)
    if not found or found[2].lower() not in units or float(found[1]) == 0:
        raise InputError(
            f"{flag} needs a number above 0 and a unit ({', '.join(units)}), as in {example}; not {text!r}"
        )
    return float(found[1]) * units[found[2].lower()]


def slowest(ranks: Sequence[Sequence[StepTimes]]) -> np.ndarray:
    """Seconds of each step, by the rank that took longest: no rank can begin the next before it has met the others."""
    return np.array([max(times) for times in zip(*([step.total for step in rank] for rank in ranks), strict=True)])


def exposed(record: AnatomyRecord) -> Interval:
    """Seconds by which averaging the gradients lengthens a step: with it less without it, pair by pair."""
    return median_interval(slowest(record.averaged) - slowest(record.alone))


@dataclass(frozen=True)
class StepCost:
    """Seconds of a step that does not communicate, as a straight line in the images per process; and its gradients."""

    fixed: float
    per_image: float
    gradient_bytes: int
    buckets: int = 1

    def seconds(self, images: float) -> float:
        """One step with so many images."""
        return self.fixed + self.per_image * images


def fit_step(images: Sequence[int], seconds: Sequence[float], gradient_bytes: int, buckets: int = 1) -> StepCost:
    """The line through measured steps with the smallest relative squared error; neither part is below zero."""
    taken = np.asarray(seconds, dtype=float)
    design = np.stack([np.ones(len(taken)), np.asarray(images, dtype=float)], axis=1) / taken[:, None]
    (fixed, per_image), _ = nnls(design, np.ones(len(taken)))
    return StepCost(float(fixed), float(per_image), gradient_bytes, buckets)


def predict_step(cost: StepCost, images: float, link: Link, processes: int, cores: int | None = None) -> float:
    """Seconds of a step of `processes` ranks with `images` each, communication added in full.

    In full: where all cores compute, none is left to send and add up gradients beside it. Where an accelerator or idle
    cores can hide some of it, the prediction is too long. With `cores`, ranks beyond that number take turns: all
    computing then takes processes / cores times as long.
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
    """A predicted step beside the measured one, in seconds; and what averaging the gradients should add, and did."""

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


def check_steps(survey: SurveyRecord) -> list[Check]:
    """For every point: computing as measured under no_sync plus the all-reduce by the link, against the real step."""
    link = fit_link(survey.sweep)
    checks = []
    for point in survey.points:
        alone = float(np.mean(point.alone))
        all_reduce = link.all_reduce(point.gradient_bytes, survey.processes, point.buckets)
        measured = mean_interval(point.averaged)
        checks.append(
            Check(point.model, point.images, alone + all_reduce, measured, all_reduce, measured.value - alone)
        )
    return checks


class ModelCosts:
    """One model's lines through the survey's points: serial on all cores, and a rank computing beside the others."""

    def __init__(self, survey: SurveyRecord, model: str) -> None:
        points = survey.of_model(model)
        if len(points) < 2:
            raise InputError(f"the survey holds fewer than two batch sizes of {model}; run notebook 04 again")
        images = [point.images for point in points]
        size, buckets = points[0].gradient_bytes, points[0].buckets
        whole = [survey.processes * count for count in images]
        self.serial = fit_step(whole, [float(np.mean(point.serial)) for point in points], size, buckets)
        self.rank = fit_step(images, [float(np.mean(point.alone)) for point in points], size, buckets)
        machine = survey.environment
        self.cores = machine.cores // survey.threads if machine.device == "cpu" else max(machine.accelerator_count, 1)

    def speedup_here(self, batch: int, processes: int, link: Link) -> float:
        """Predicted: `processes` ranks of this machine share a global batch; over one process on all cores."""
        if processes == 1:
            return 1.0
        step = predict_step(self.rank, batch / processes, link, processes, self.cores)
        return self.serial.seconds(batch) / step

    def speedup_on_network(self, batch: int, processes: int, link: Link) -> float:
        """Predicted: as many machines like this one, a rank on all cores of each, share a global batch."""
        return self.serial.seconds(batch) / predict_step(self.serial, batch / processes, link, processes)

    def weak_speedup_on_network(self, batch: int, processes: int, link: Link) -> float:
        """Predicted: each machine takes a whole batch; over one machine that computes all of them in one step."""
        return self.serial.seconds(processes * batch) / predict_step(self.serial, batch, link, processes)


def serial_share(costs: ModelCosts, batch: int) -> float:
    """Share of a serial step that more processes do not shorten: what it takes however few images there are."""
    return costs.serial.fixed / costs.serial.seconds(batch)
