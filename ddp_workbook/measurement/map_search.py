"""Which global batches the batch map measures: the search for the break-evens.

The batch doubles until all intervals of the speedups lie above 1 at two successive batches, or until memory or the
training images end. Then the steps between the batches around each break-even are halved. (A single batch above 1 is
too often luck: with a true speedup of 0.985 and 5 % noise, 8 of 100 simulated maps showed a gain.)
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ddp_workbook.analysis.break_even import bracket, curves
from ddp_workbook.records.batch_map import MapEnd, MapPoint, NetworkMap

FEWEST_EACH = 8  # images per process in the smallest batch
PAYING = 2  # successive batches with a gain in every way end the doubling
NEAR = 1.25  # two batches around a break-even are close enough when their ratio is not larger
MEMORY_SHARE = 0.8  # of what is available that a batch may need


def next_batch(network: NetworkMap, processes: int) -> int | None:
    """The global batch to measure next; None when the network's map is complete."""
    batches = [point.batch for point in network.points]
    if not batches:
        return FEWEST_EACH * processes
    if network.end is None:
        return 2 * batches[-1]
    around = [found for curve in curves(network) if (found := bracket(curve)) and found[1] / found[0] > NEAR]
    for low, high in around:
        middle = processes * round(math.sqrt(low * high) / processes)
        if low < middle < high:
            return middle
    return None


def end_at(network: NetworkMap, images: int, largest: int | None, memory: tuple[int, int] | None) -> MapEnd | None:
    """Why the batch is not doubled once more; None: it is. `images`: those of the training set.

    `memory`: the bytes that the pool with the most memory holds, and those that are available beside them.
    """
    points, following = network.points, 2 * network.points[-1].batch
    gains = [speedup.low > 1 for curve in curves(network) for speedup in curve.speedups[-PAYING:]]
    if len(points) >= PAYING and all(gains):
        return MapEnd(reason="pays")
    if largest is not None and following > largest:
        return MapEnd(reason="asked")
    if following > images:
        return MapEnd(reason="images")
    if memory and len(points) > 1:
        last, before = points[-1].peak_bytes, points[-2].peak_bytes
        needed, available = last + 2 * max(last - before, 0), sum(memory)  # twice as many images as were added last
        if needed > MEMORY_SHARE * available:
            return MapEnd(reason="memory", needed_bytes=needed, available_bytes=available)
    return None


def complete_network(
    network: NetworkMap,
    processes: int,
    measure: Callable[[int], MapPoint],
    end: Callable[[NetworkMap], MapEnd | None],
    on_point: Callable[[NetworkMap, MapPoint], None] = lambda *_: None,
) -> NetworkMap:
    """Measure what the network's map still lacks. `measure` makes a point; `end` says why a batch is the largest."""
    while (batch := next_batch(network, processes)) is not None:
        point = measure(batch)
        points = sorted([*network.points, point], key=lambda each: each.batch)
        network = network.model_copy(update={"points": points})
        if network.end is None:
            network = network.model_copy(update={"end": end(network)})
        on_point(network, point)
    return network
