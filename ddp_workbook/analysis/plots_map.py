"""The figure of the batch map: measured speedups by global batch, and from which batch on it pays."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ddp_workbook.analysis.break_even import (
    Curve,
    baseline_name,
    break_even,
    curves,
    hook_name,
    is_settled,
    shown_gains,
)
from ddp_workbook.analysis.plots_style import INK, ORANGE, RANKS, error_bars, new_figure, set_finding
from ddp_workbook.records.batch_map import BatchMap, NetworkMap
from ddp_workbook.specs import MODELS

HOOK_STYLES = {"allreduce": (ORANGE, "s"), "shared-memory": (RANKS[3], "o")}
MOST_TICKS = (8, 6, 4, 3, 3)  # with one network, two, ...
ROOM = 1.18  # above the largest median


def batch_map(record: BatchMap) -> Figure:
    """Speedup by global batch: a column for each network, a row for each baseline, a line for each way to send.

    The vertical lines are the break-evens, in the colours of the ways to send, with their intervals as bands. Points
    that are not settled are hollow. The scale follows the medians: an interval that a slow round made long is cut.
    """
    networks = [network for network in record.networks if network.points]
    rows = list(dict.fromkeys(curve.baseline for network in networks for curve in curves(network)))
    figure, axes = new_figure(len(rows), len(networks), height=1.6 + 1.9 * len(rows), sharex="col", sharey="row")
    for row, baseline in zip(axes, rows, strict=True):
        for ax, network in zip(row, networks, strict=True):
            for curve in curves(network):
                if curve.baseline == baseline:
                    _draw_curve(ax, curve)
            ax.axhline(1, color=INK, linewidth=0.8)
        row[0].set_ylabel(f"speedup over\n{baseline_name(record, baseline)}")
        row[0].set_ylim(0, ROOM * _highest(networks, baseline))
    for ax, network in zip(axes[0], networks, strict=True):
        ax.set_title(MODELS[network.model].label)
    ticks = MOST_TICKS[min(len(networks), len(MOST_TICKS)) - 1]
    for ax, network in zip(axes[-1], networks, strict=True):
        _batch_axis(ax, network, ticks)
    axes[-1][(len(networks) - 1) // 2].set_xlabel("global batch (images, logarithmic)")  # for all columns
    _legend(figure, record, networks)
    set_finding(figure, _finding(record, networks))
    return figure


def _draw_curve(ax: Axes, curve: Curve) -> None:
    colour, marker = HOOK_STYLES[curve.hook]
    ax.plot(curve.batches, [each.value for each in curve.speedups], color=colour, linewidth=1)
    for batch, each in zip(curve.batches, curve.speedups, strict=True):
        face = colour if is_settled(each) else "white"
        ax.errorbar(
            batch,
            each.value,
            error_bars([each]),
            color=colour,
            fmt=marker,
            markerfacecolor=face,
            capsize=2,
            markersize=4,
        )
    pays = break_even(curve)
    if 0 < pays.value < math.inf:
        ax.axvline(pays.value, color=colour, linestyle="--", linewidth=1)
    if pays.low < math.inf and pays.high > 0:
        ends = curve.batches[0], curve.batches[-1]
        ax.axvspan(max(pays.low, ends[0]), min(pays.high, ends[1]), color=colour, alpha=0.12, linewidth=0)


def _highest(networks: list[NetworkMap], baseline: str) -> float:
    """The largest median of a row, at least 1."""
    chosen = [curve for network in networks for curve in curves(network) if curve.baseline == baseline]
    return max([1.0, *(each.value for curve in chosen for each in curve.speedups)])


def _batch_axis(ax: Axes, network: NetworkMap, most: int) -> None:
    first, last = network.points[0].batch, network.points[-1].batch
    ticks = [first * 2**power for power in range(round(math.log2(last / first)) + 1)]
    ticks = ticks[:: -(-len(ticks) // most)]
    ax.set_xscale("log")
    ax.set_xticks(ticks, labels=[f"{tick:,}" for tick in ticks])
    ax.minorticks_off()


def _legend(figure: Figure, record: BatchMap, networks: list[NetworkMap]) -> None:
    hooks = list(dict.fromkeys(curve.hook for network in networks for curve in curves(network)))
    handles = [
        Line2D(
            [], [], color=HOOK_STYLES[hook][0], marker=HOOK_STYLES[hook][1], label=f"through {hook_name(record, hook)}"
        )
        for hook in hooks
    ]
    handles += [
        Line2D([], [], color=INK, marker="o", markerfacecolor="white", linestyle="none", label="not settled"),
        Line2D([], [], color=INK, linestyle="--", label="break-even, its interval as a band"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)


def _when(ways: list[Curve]) -> str:
    """From which batch on the best of these ways to send pays, or at which batches alone."""
    first, last = ways[0].batches[0], ways[0].batches[-1]
    found = min(map(break_even, ways), key=lambda each: each.high)
    if found.high == 0:
        return f"from {first} images on"
    if found.high < math.inf:
        return f"from {found.value:,.0f} images on" if found.value else f"from {first} images or less on"
    gains = shown_gains(max(ways, key=lambda curve: sum(each.low > 1 for each in curve.speedups)))
    return f"at {gains} images, not shown at more up to {last:,}" if gains else f"not shown up to {last:,}"


def _finding(record: BatchMap, networks: list[NetworkMap]) -> str:
    """When each network pays over the strongest baseline by its best way to send."""
    words, last = [], None
    for network in networks:
        last = curves(network)[-1].baseline
        found = _when([curve for curve in curves(network) if curve.baseline == last])
        words.append(f"{MODELS[network.model].label} {found}")
    start = f"When {record.processes} processes pay over {baseline_name(record, last)}, by the best way to send"
    return f"{start}: {'; '.join(words)}"
