"""Batch maps made without any timing: steps that follow a law, times noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from helper_records import make_run

from ddp_workbook.analysis.break_even import needs_no_more_rounds
from ddp_workbook.measurement.batch_map import ROUNDS, ROUNDS_AT_MOST
from ddp_workbook.measurement.map_search import complete_network, end_at
from ddp_workbook.records.batch_map import BatchMap, MapEnd, MapPoint, NetworkMap

TRUE_BREAK_EVEN = 500  # 1 + 0.06 B = 1 + 0.05 B + 5
LARGEST = 4096


def crossing(batch: int) -> float:
    """The speedup of a serial step of 1 + 0.06 B ms over a distributed one of 6 + 0.05 B."""
    return (1 + 0.06 * batch) / (6 + 0.05 * batch)


def make_point(batch: int, serial: list[float], distributed: list[float], peak_bytes: int = 0) -> MapPoint:
    """A point with one baseline and one way to send."""
    return MapPoint(
        batch=batch,
        steps=3,
        serial={"all cores": serial},
        distributed={"allreduce": distributed},
        peak_bytes=peak_bytes,
    )


def constant_point(batch: int, speedup: float, **more: int) -> MapPoint:
    """Six rounds with the same speedup."""
    return make_point(batch, [speedup] * 6, [1.0] * 6, **more)


def noisy_point(batch: int, speedup: float, spread: float, draws: np.random.Generator) -> MapPoint:
    """Steps with this true speedup, times noise; as many rounds as measure_point() would take."""
    serial, distributed = np.exp(spread * draws.standard_normal((2, ROUNDS_AT_MOST)))
    for rounds in range(ROUNDS, ROUNDS_AT_MOST + 1, ROUNDS):
        point = make_point(batch, (speedup * serial[:rounds]).tolist(), distributed[:rounds].tolist())
        if needs_no_more_rounds(point):
            break
    return point


def search(spread: float, draws: np.random.Generator, speedup: Callable[[int], float] = crossing) -> NetworkMap:
    """A whole search with this noise, without memory: by default for TRUE_BREAK_EVEN."""

    def measure(batch: int) -> MapPoint:
        return noisy_point(batch, speedup(batch), spread, draws)

    return complete_network(
        NetworkMap(model="cnn", points=[]), 2, measure, lambda found: end_at(found, LARGEST, None, None)
    )


def make_map(*networks: NetworkMap) -> BatchMap:
    """The map of these networks on a machine with two cores."""
    return BatchMap(
        dataset="digits", environment=make_run()[0].environment, processes=2, threads=1, backend="gloo",
        networks=networks,
    )  # fmt: skip


def curve_map(batches: list[int], speedups: list[float], reason: str = "pays", **more: int) -> BatchMap:
    """The map of one network with these speedups, without noise."""
    points = [constant_point(*pair) for pair in zip(batches, speedups, strict=True)]
    return make_map(NetworkMap(model="cnn", points=points, end=MapEnd(reason=reason, **more)))
