"""From which global batch on several processes pay: measured curves, and where they cross a speedup of 1.

A curve is the speedup over one baseline by one way to send gradients, at every global batch that was measured. Each of
its points is a median of rounds with its interval from order statistics, so that a slow round moves it little.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ddp_workbook.analysis.costmodel import SETTLED_WIDTH
from ddp_workbook.analysis.speedup import speedup
from ddp_workbook.config import CommHookName
from ddp_workbook.records.batch_map import Baseline, BatchMap, MapEnd, MapPoint, NetworkMap
from ddp_workbook.records.timing import Interval
from ddp_workbook.specs import MODELS

UNDECIDED_WIDTH = 0.05  # while it contains 1: gains of a few percent are what decides there
HOOKS = {"gloo": "Gloo", "nccl": "NCCL", "shared-memory": "shared memory"}


class Curve(NamedTuple):
    """Speedups by global batch, over one baseline and by one way to send gradients."""

    baseline: Baseline
    hook: CommHookName
    batches: list[int]
    speedups: list[Interval]


def speedup_at(point: MapPoint, baseline: Baseline, hook: CommHookName) -> Interval:
    """Speedup at one global batch, round by round: the median of the ratios."""
    return speedup(np.asarray(point.serial[baseline]), np.asarray(point.distributed[hook]))


def curves(network: NetworkMap) -> list[Curve]:
    """Every baseline with every way to send, in the order of the record; empty without points."""
    batches = [point.batch for point in network.points]
    pairs = [
        (baseline, hook) for point in network.points[:1] for baseline in point.serial for hook in point.distributed
    ]
    return [Curve(*pair, batches, [speedup_at(point, *pair) for point in network.points]) for pair in pairs]


def is_settled(speedup: Interval) -> bool:
    """Whether the interval is narrow enough to be read as a number."""
    return speedup.high - speedup.low <= SETTLED_WIDTH * speedup.value


def needs_no_more_rounds(point: MapPoint) -> bool:
    """Whether all speedups of a point are settled, and those whose interval contains 1 are known more closely."""
    found = [speedup_at(point, baseline, hook) for baseline in point.serial for hook in point.distributed]
    narrow = [UNDECIDED_WIDTH if each.low <= 1 <= each.high else SETTLED_WIDTH for each in found]
    return all(each.high - each.low <= width * each.value for each, width in zip(found, narrow, strict=True))


def break_even(curve: Curve) -> Interval:
    """The global batch from which on the speedup stays above 1 up to the largest one measured, and its interval.

    The value is where the medians cross 1 for the last time. The interval inverts those of the points, as Fieller's
    method does for a ratio: it begins where the upper ends reach 1 for the first time, and ends where after the value
    the lower ends do, so where a gain is shown. (Where they do so for the last time would be no bound: a gain grows
    ever more slowly, and some lower end of many that lie just above 1 is below it by chance.) Between two points the
    speedup is taken to be a line over the logarithm of the batch. 0 means: at or below the smallest batch; infinity:
    beyond the largest one, or never.
    """
    logs = np.log(curve.batches)
    values = [each.value for each in curve.speedups]
    last = max((number for number, value in enumerate(values) if value <= 1), default=0)
    return Interval(
        _last_crossing(logs, values),
        _first_crossing(logs, [each.high for each in curve.speedups]),
        _first_crossing(logs[last:], [each.low for each in curve.speedups][last:]),
    )


def _last_crossing(logs: np.ndarray, values: Sequence[float]) -> float:
    """The batch after which all values are above 1."""
    not_above = [number for number, value in enumerate(values) if value <= 1]
    if not not_above:
        return 0.0
    last = not_above[-1]
    return math.inf if last == len(values) - 1 else _crossing(logs, values, last)


def _first_crossing(logs: np.ndarray, values: Sequence[float]) -> float:
    """The batch before which all values are below 1."""
    first = next((number for number, value in enumerate(values) if value >= 1), None)
    if first is None:
        return math.inf
    return 0.0 if first == 0 else _crossing(logs, values, first - 1)


def _crossing(logs: np.ndarray, values: Sequence[float], left: int) -> float:
    """Where the line from the point `left` to the next one has the value 1."""
    share = (1 - values[left]) / (values[left + 1] - values[left])
    return float(np.exp(logs[left] + share * (logs[left + 1] - logs[left])))


def bracket(curve: Curve) -> tuple[int, int] | None:
    """The neighbouring batches between which the medians cross 1 for the last time; None where they do not."""
    last = max((number for number, each in enumerate(curve.speedups) if each.value <= 1), default=-1)
    return tuple(curve.batches[last : last + 2]) if 0 <= last < len(curve.batches) - 1 else None


def read_map(record: BatchMap, model: str | None = None) -> str:
    """When it pays, a sentence for each network, way to send and baseline; `model`: of this network alone."""
    chosen = [network for network in record.networks if network.points and model in (None, network.model)]
    paragraphs = [[_sentence(record, network, curve) for curve in curves(network)] for network in chosen]
    return "\n\n".join("\n".join(sentences) for sentences in paragraphs)


def hook_name(record: BatchMap, hook: CommHookName) -> str:
    """The way to send gradients, as figures and sentences call it."""
    return HOOKS.get(record.backend if hook == "allreduce" else hook, hook)


def baseline_name(record: BatchMap, baseline: Baseline) -> str:
    """The baseline, with its threads where they matter."""
    if record.environment.device != "cpu":
        return "one process"
    threads = record.threads if baseline == "one worker" else record.environment.cores
    return f"one process with {threads} thread{'s' if threads > 1 else ''}"


def _sentence(record: BatchMap, network: NetworkMap, curve: Curve) -> str:
    pays = _pays(break_even(curve), curve, network.end)
    return (
        f"{MODELS[network.model].label}, through {hook_name(record, curve.hook)}, over "
        f"{baseline_name(record, curve.baseline)}: on this machine {record.processes} processes {pays}."
    )


def _pays(batch: Interval, curve: Curve, end: MapEnd | None) -> str:
    """The verb of the sentence, decided by the whole interval."""
    first, last = curve.batches[0], f"{curve.batches[-1]:,} images, {_where(end)}"
    if batch.low == math.inf:
        return f"do not pay up to a global batch of {last}"
    gains = shown_gains(curve)
    if batch.value == math.inf:
        pay = f"pay at a global batch of {gains} images, but are not shown to at larger ones up to"
        return f"{pay if gains else 'are not shown to pay up to a global batch of'} {last}; {_loss(curve)}"
    if batch.high == math.inf:
        before = f"; a gain is shown at {gains} images" if gains else ""
        may = f"may pay from a global batch of {_images(batch.value, first)} on"
        return f"{may}, but are not shown to up to {last}{before}"
    if batch.high == 0:
        return f"pay from the smallest global batch measured, {first} images"
    if batch.low == 0:
        return f"pay from a global batch of {_images(batch.value, first)} on, at most {batch.high:,.0f} images"
    return f"pay from a global batch of {batch.text(',.0f')} images"


def shown_gains(curve: Curve) -> str:
    """The batches at which a gain is shown, neighbours together, as in "32 to 64 and 256"; empty without any."""
    runs = itertools.groupby(zip(curve.batches, curve.speedups, strict=True), lambda point: point[1].low > 1)
    ends = [(run[0][0], run[-1][0]) for run in (list(points) for shown, points in runs if shown)]
    return " and ".join(f"{first:,} to {last:,}" if first < last else f"{first:,}" for first, last in ends)


def _loss(curve: Curve) -> str:
    """Whether a loss is shown at the largest batch, and from where on; at batches above those of all shown gains."""
    above = max((number for number, each in enumerate(curve.speedups) if each.low > 1), default=-1) + 1
    batches, highs = curve.batches[above:], [each.high for each in curve.speedups[above:]]
    losses = [number for number, high in enumerate(highs) if high < 1]
    if not losses:
        return "nor is a loss shown"
    if losses[-1] < len(highs) - 1:
        return f"from {_crossing(np.log(batches), highs, losses[-1]):,.0f} images on a loss is not shown either"
    begin = max((number for number, high in enumerate(highs) if high >= 1), default=-1) + 1
    where = f"from {batches[begin]:,} images on" if begin < len(batches) - 1 else f"at {batches[-1]:,} images"
    return f"{where} a loss is shown"


def _images(batch: float, first: int) -> str:
    return f"{batch:,.0f} images" if batch else f"{first} images or less"


def _where(end: MapEnd | None) -> str:
    """What ends the map there."""
    if end is None:
        return "the largest one so far"
    if end.reason == "memory":
        needed, available = (f"{count / 2**30:.1f} GiB" for count in (end.needed_bytes, end.available_bytes))
        return f"where memory ends (twice the batch needs about {needed}, and {available} are available)"
    return {
        "images": "where the training images end",
        "asked": "the largest one that was asked for",
        "pays": "the largest one measured",
    }[end.reason]
