"""Published scaling results beside predictions of the cost model: one row of a cluster fitted, the others tested."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from scipy.optimize import brentq, nnls

from ddp_workbook.analysis.clusters import BACKWARD_SHARE, Cluster, exposed_seconds, fill_buckets
from ddp_workbook.analysis.fits import Link
from ddp_workbook.analysis.published import LAYERS, PAYLOAD, ROWS, SETUPS, OldTable, Row, gradient_bytes

TARGET = 0.15  # largest error of a prediction that needs no reason


@dataclass(frozen=True)
class Known:
    """What the source leaves open: speed of a processor over its `rate`, and payload of the link between nodes."""

    speed: float = 1.0
    payload: float = PAYLOAD


def step_seconds(row: Row, processes: int, known: Known) -> float:
    """Predicted seconds of a step of the row's network on so many processes of its cluster."""
    setup = SETUPS[row.setup]
    seconds = row.images / row.rate / known.speed
    backward = (row.backward / known.speed) if row.backward else BACKWARD_SHARE * seconds
    layers = [(4.0 * parameters, work) for parameters, work in LAYERS[row.model]]
    buckets = fill_buckets(layers, backward, ceil(gradient_bytes(row.model) / setup.bucket_bytes))
    cluster = Cluster(setup.node_size, _paid(setup.inside, PAYLOAD), _paid(setup.between, known.payload))
    return seconds + exposed_seconds(buckets, cluster, processes)


def _paid(link: Link, share: float) -> Link:
    return replace(link, bandwidth=share * link.bandwidth)


def predict_row(row: Row, known: Known) -> float:
    """In the row's own quantity."""
    step = step_seconds(row, row.processes, known)
    if row.quantity == "images/s":
        return row.processes * row.images / step
    return step_seconds(row, row.base, known) / step


def fit_setup(name: str) -> Known:
    """The cluster's one unknown, such that the prediction of its fitted row is what was published."""
    unknown = SETUPS[name].unknown
    if unknown is None:
        return Known()
    (row,) = (row for row in ROWS if row.setup == name and row.fitted)

    def error(value: float) -> float:
        return predict_row(row, Known(**{unknown: value})) / row.published - 1

    return Known(**{unknown: float(brentq(error, 0.01, 10))})


@dataclass(frozen=True)
class Compared:
    """A row, its prediction, and the error relative to what was published."""

    row: Row
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted / self.row.published - 1


def compare() -> list[Compared]:
    """Every row, in the order of the data."""
    known = {name: fit_setup(name) for name in SETUPS}
    return [Compared(row, predict_row(row, known[row.setup])) for row in ROWS]


def most_saved_by_overlap(backward_share: float = BACKWARD_SHARE) -> float:
    """The largest share of a step that overlap can save, on any network.

    A step of 1 s takes 1 + A with A seconds of all-reduces after backward. Beside backward, of b seconds, at most the
    smaller of A and b is hidden. As a share of 1 + A that is largest where A = b.
    """
    return backward_share / (1 + backward_share)


@dataclass(frozen=True)
class OldRow:
    """A row of the older courseworks' table, and what it could be."""

    processes: int
    published: float
    strong_bound: float
    """The largest speedup of strong scaling: forward and backward are split, the optimizer's step is not."""
    added: float
    """Seconds that each step is longer than on one GPU, if every GPU keeps its batch (weak scaling)."""
    plain: float
    """Speedup with the network that fits all rows best, nothing hidden."""
    overlapped: float
    """Speedup with the network that fits all rows best, all-reduces beside backward."""


@dataclass(frozen=True)
class OldVerdict:
    """The older courseworks' table read as weak scaling: the network that fits it best, with and without overlap."""

    rows: list[OldRow]
    plain: Link
    overlapped: Link


def judge_old_table(table: OldTable) -> OldVerdict:
    """What the table says about its network, and whether it agrees with itself.

    Each row gives the seconds that synchronization adds to a step. With nothing hidden these are the all-reduces. With
    overlap they are what comes after backward. A link has two unknowns, and there are three rows: errors remain.
    """
    epoch = table.forward + table.backward + table.optimizer
    step, backward = epoch / table.steps, table.backward / table.steps
    added = [step * (count / speedup - 1) for count, speedup in table.speedups]
    buckets = fill_buckets([(table.step_bytes, 1.0)], backward, ceil(table.step_bytes / table.bucket_bytes))
    hidden = -buckets[0].ready  # by a network that is never idle: what is left of backward after the first bucket
    plain, beside = (_fit(table, [extra + more for extra in added], len(buckets)) for more in (0.0, hidden))

    def speedup(count: int, seconds: Callable[[int], float]) -> float:
        return count * step / (step + seconds(count))

    rows = [
        OldRow(
            processes=count,
            published=published,
            strong_bound=epoch / ((table.forward + table.backward) / count + table.optimizer),
            added=extra,
            plain=speedup(count, lambda n: plain.all_reduce(table.step_bytes, n, len(buckets))),
            overlapped=speedup(count, lambda n: exposed_seconds(buckets, beside, n)),
        )
        for (count, published), extra in zip(table.speedups, added, strict=True)
    ]
    return OldVerdict(rows, plain, beside)


def _fit(table: OldTable, seconds: Sequence[float], buckets: int) -> Link:
    """The link with the smallest relative squared error over the all-reduces of the table's steps."""
    counts, taken = np.array([count for count, _ in table.speedups]), np.array(seconds)
    messages = 2 * (counts - 1)
    design = np.stack([buckets * messages, messages / counts * table.step_bytes], axis=1) / taken[:, None]
    (latency, seconds_per_byte), _ = nnls(design, np.ones_like(taken))
    return Link(float(latency), 1 / max(float(seconds_per_byte), 1e-15))
