"""Batch maps made without any timing: steps that follow a law, times noise."""

from __future__ import annotations

import numpy as np
from helper_records import make_run

from ddp_workbook.analysis.break_even import curves, needs_no_more_rounds
from ddp_workbook.measurement.batch_map import ROUNDS, ROUNDS_AT_MOST
from ddp_workbook.measurement.map_search import complete_network
from ddp_workbook.records.batch_map import BatchMap, MapEnd, MapPoint, NetworkMap

TRUE_BREAK_EVEN = 500  # 1 + 0.06 B = 1 + 0.05 B + 5
LARGEST = 4096


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


def noisy_point(batch: int, spread: float, draws: np.random.Generator) -> MapPoint:
    """A serial step of 1 + 0.06 B ms, a distributed one of 6 + 0.05 B; as many rounds as measure_point() would take."""
    serial, distributed = np.exp(spread * draws.standard_normal((2, ROUNDS_AT_MOST)))
    for rounds in range(ROUNDS, ROUNDS_AT_MOST + 1, ROUNDS):
        times = ((1 + 0.06 * batch) * serial[:rounds]).tolist(), ((6 + 0.05 * batch) * distributed[:rounds]).tolist()
        point = make_point(batch, *times)
        if needs_no_more_rounds(point):
            break
    return point


def end(network: NetworkMap) -> MapEnd | None:
    """The end of a search without memory: it pays, or LARGEST is reached."""
    if all(curve.speedups[-1].low > 1 for curve in curves(network)):
        return MapEnd(reason="pays")
    return MapEnd(reason="asked") if network.points[-1].batch >= LARGEST else None


def search(spread: float, draws: np.random.Generator) -> NetworkMap:
    """A whole search for TRUE_BREAK_EVEN with this noise."""
    empty = NetworkMap(model="cnn", points=[])
    return complete_network(empty, 2, lambda batch: noisy_point(batch, spread, draws), end)


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
