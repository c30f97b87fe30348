"""A training step on a cluster, as an event simulation: backward fills buckets, and the network takes them in order.

The clock stands at zero when backward ends, so a bucket is ready at a time of at most zero. Buckets are all-reduced one
after another; what is left at time zero is exposed. With every bucket ready at zero nothing overlaps: that is the plain
sum of the cost model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ddp_workbook.analysis.fits import Link
from ddp_workbook.errors import InputError

BACKWARD_SHARE = 2 / 3  # of a step: backward computes two products of matrices where forward computes one


@dataclass(frozen=True)
class Cluster:
    """Nodes of `node_size` processes, with a link `inside` a node and one `between` nodes.

    The all-reduce is hierarchical: a ring inside each node leaves a part of the sum on every process (reduce-scatter),
    rings between the nodes all-reduce the parts, and a ring inside each node collects them (all-gather). All parts pass
    the one network card of a node, so that the rings between nodes take as long as a single one with all bytes.
    """

    node_size: int
    inside: Link
    between: Link

    def all_reduce(self, size: float, processes: int, buckets: int = 1) -> float:
        """Seconds to all-reduce `size` bytes, split into `buckets` all-reduces one after another.

        The two rings inside a node are the two halves of one ring all-reduce. Raises InputError for incomplete nodes.
        """
        local = min(processes, self.node_size)
        if processes % local:
            raise InputError(f"{processes} processes do not fill nodes of {self.node_size}")
        inside = self.inside.all_reduce(size, local, buckets)
        return inside + self.between.all_reduce(size, processes // local, buckets)


def node_size_of(network: Link | Cluster) -> int:
    """Processes of a node: one, if there is a single link."""
    return network.node_size if isinstance(network, Cluster) else 1


def unit_of(network: Link | Cluster) -> str:
    """What is counted on it, in the plural."""
    return "processes" if isinstance(network, Cluster) else "machines"


def whole_nodes(counts: Sequence[int], network: Link | Cluster) -> list[int]:
    """The counts of processes, those above one node rounded to whole nodes; each of them once."""
    node = node_size_of(network)
    return sorted({count if count < node else node * round(count / node) for count in map(int, counts)})


@dataclass(frozen=True)
class Bucket:
    """Gradients that are all-reduced together: bytes, and the seconds (at most 0) from the end of backward."""

    ready: float
    size: float


def fill_buckets(layers: Sequence[tuple[float, float]], backward: float, count: int) -> list[Bucket]:
    """`count` buckets of equal size, in the order in which backward fills them.

    `layers` are (bytes of gradients, work in any unit) from the network's output to its input. The `backward` seconds
    are spread over these groups of layers as their work is; within a group the bytes come evenly.
    """
    size, work = np.cumsum([(0.0, 0.0), *layers], axis=0).T
    ends = size[-1] * np.arange(1, count + 1) / count
    ready = backward * (np.interp(ends, size, work / work[-1]) - 1)
    return [Bucket(float(seconds), float(size[-1]) / count) for seconds in ready]


def all_reduce_times(buckets: Sequence[Bucket], network: Link | Cluster, processes: int) -> list[tuple[float, float]]:
    """(begin, end) of each bucket's all-reduce, in seconds from the end of backward."""
    times: list[tuple[float, float]] = []
    for bucket in buckets:
        begin = max(bucket.ready, times[-1][1]) if times else bucket.ready
        times.append((begin, begin + network.all_reduce(bucket.size, processes)))
    return times


def exposed_seconds(buckets: Sequence[Bucket], network: Link | Cluster, processes: int) -> float:
    """By how much the all-reduces lengthen a step: from the end of backward to the end of the last of them."""
    return max(all_reduce_times(buckets, network, processes)[-1][1], 0.0)
