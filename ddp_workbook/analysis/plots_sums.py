"""What a sum over ranks costs through a server, a tree and a ring: a picture of the closed forms of lab 3."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ddp_workbook.analysis.plots_style import BLUE, GREY, ORANGE, new_figure, set_finding

WAYS = {"server": (GREY, "^"), "tree": (BLUE, "o"), "ring": (ORANGE, "s")}
RANKS = np.arange(2, 17)
SIZES = np.logspace(2, 8, 200)  # bytes


def messages(way: str, ranks: int) -> tuple[int, float, int]:
    """Of the busiest rank: messages that it sends, the share of the tensor in each; and the steps of the whole sum."""
    rounds = (ranks - 1).bit_length()  # the logarithm to the base of 2, rounded up
    return {
        "server": (ranks - 1, 1.0, 2 * (ranks - 1)),
        "tree": (rounds, 1.0, 2 * rounds),
        "ring": (2 * (ranks - 1), 1 / ranks, 2 * (ranks - 1)),
    }[way]


def sums(ranks: int = 8, alpha: float = 50e-6, beta: float = 8e-9) -> Figure:
    """Left: bytes over the number of ranks. Right: predicted seconds over the size, for a link of alpha + beta * bytes.

    alpha in seconds a message, beta in seconds a byte; the defaults are 50 µs and 1 Gbit/s.
    """
    figure, [[left, right]] = new_figure(1, 2, height=3.0)
    for way, (colour, marker) in WAYS.items():
        sent = [number * share for number, share, _ in (messages(way, int(n)) for n in RANKS)]
        left.plot(RANKS, sent, color=colour, marker=marker, label=way)
        _, share, steps = messages(way, ranks)
        right.loglog(SIZES, 1000 * steps * (alpha + beta * share * SIZES), color=colour, label=way)
    left.set(xlabel="ranks N", ylabel="busiest rank sends (tensors)", ylim=(0, RANKS[-1]), title="exact counts")
    left.set_xticks([2, 4, 8, 12, 16])
    left.yaxis.get_major_locator().set_params(integer=True)
    right.set_xticks([1e2, 1e4, 1e6, 1e8], ["100 B", "10 kB", "1 MB", "100 MB"])
    right.set_yticks([1, 10, 100, 1000, 10_000], ["1", "10", "100", "1,000", "10,000"])
    right.set(
        xlabel="size of the tensor",
        ylabel="predicted time (ms)",
        title=f"{ranks} ranks, {1e6 * alpha:g} µs and {8e-9 / beta:g} Gbit/s",
    )
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    set_finding(figure, "A ring's rank never sends more than two tensors; small tensors are faster through a tree")
    return figure
