"""What a rank keeps and sends by number of ranks, unsharded and sharded: measured points, closed forms as lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddp_workbook.analysis.memory import Shard, StepBytes, kept_bytes, sent_bytes, step_bytes, step_collectives
from ddp_workbook.analysis.plots_style import BLUE, GREY, INK, ORANGE, PARTS, new_figure, percent, set_finding
from ddp_workbook.records.rank_bytes import RankBytes

WAYS: dict[Shard, tuple[str, str, str]] = {
    "none": ("DDP", GREY, "^"), "optimizer": ("ZeRO-1", BLUE, "o"), "full": ("FSDP", ORANGE, "s")
}  # fmt: skip
STEP_PARTS = {"parameters": BLUE, "gradients": PARTS["backward"], "optimizer": PARTS["optimizer"], "activations": GREY}
MOST_RANKS = 8
MIB = 2**20

Measured = Mapping[tuple[Shard, int], Sequence[RankBytes]]
"""By way of sharding and number of ranks: the bytes of each rank."""


def memory_by_ranks(title: str, measured: Measured, parameters: int, copies: int) -> Figure:
    """Left: parameters, gradients and optimizer state that a rank keeps. Right: what it sends in a step.

    `parameters` is their bytes, `copies` the optimizer's values for each. A point is the mean over the ranks, its bar
    goes from the smallest rank to the largest; lines are closed forms, dashed where no number of ranks was measured.
    """
    figure, [[left, right]] = new_figure(1, 2, height=3.3)
    for shard, (label, colour, marker) in WAYS.items():
        counts = sorted(ranks for way, ranks in measured if way == shard)
        kept = {n: [one.parameters + one.gradients + one.optimizer for one in measured[shard, n]] for n in counts}
        sent = {n: [one.traffic.sent for one in measured[shard, n]] for n in counts if n > 1}
        style = {"color": colour, "marker": marker, "label": label}
        _points(left, kept, **style)
        _line(left, max(counts), lambda n, way=shard: kept_bytes(way, n, parameters, copies).total, color=colour)
        if all(None not in values for values in sent.values()):
            _points(right, sent, **style)
        _line(right, max(counts), lambda n, way=shard: step_bytes(way, n, parameters), color=colour)
    through_gloo = [sent_bytes(step_collectives("full", parameters), n, "gloo") / MIB for n in range(1, MOST_RANKS + 1)]
    right.plot(range(1, MOST_RANKS + 1), through_gloo, ":", color=ORANGE, linewidth=1.2)
    rings = [step_bytes(shard, MOST_RANKS, parameters) / MIB for shard in ("none", "full")]
    for text, height in zip(("DDP", "ZeRO-1, FSDP", "FSDP by Gloo"), (*rings, through_gloo[-1]), strict=True):
        place = {"textcoords": "offset points", "ha": "right", "color": INK}
        right.annotate(text, (MOST_RANKS, height), (0, -18), **place)
    left.set(xlabel="ranks N", ylabel="kept per rank (MiB)", ylim=(0, None), title="memory between two steps")
    most_sent = 1.15 * through_gloo[-1]
    right.set(xlabel="ranks N", ylabel="sent per rank and step (MiB)", ylim=(0, most_sent), title="communication")
    for ax in (left, right):
        ax.set_xticks(range(1, MOST_RANKS + 1))
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    least, most = (kept_bytes(way, MOST_RANKS, parameters, copies).total for way in ("full", "none"))
    share = percent(least / most, ".0f")
    finding = f"on {MOST_RANKS} ranks FSDP keeps {share} of what DDP keeps, and sends 1.5 times as much, by Gloo twice"
    set_finding(figure, f"{title}: {finding}. Points are measured, lines predicted")
    return figure


def step_bars(rows: Mapping[str, tuple[StepBytes, StepBytes]]) -> Figure:
    """Where the bytes of a step are, for each network: a bar of what was measured above a bar of what was predicted.

    rows: (measured, predicted) by a label with the network and its batch size. Bars are shares of what was measured.
    """
    figure, [[ax]] = new_figure(1, 1, height=0.9 + 0.5 * len(rows))
    for place, pair in enumerate(reversed(rows.values())):
        for each, offset, hatch in zip(pair, (0.19, -0.19), (None, "////"), strict=True):
            left = 0.0
            for name, size in each._asdict().items():
                label = name if place == 0 and hatch is None else None
                style = {"color": STEP_PARTS[name], "hatch": hatch, "edgecolor": "white", "linewidth": 0.5}
                ax.barh(place + offset, 100 * size / pair[0].total, 0.36, left, label=label, **style)
                left += 100 * size / pair[0].total
            ax.text(left, place + offset, f" {each.total / MIB:,.0f} MiB", va="center", fontsize=7)
    ax.set_yticks(range(len(rows)), [*reversed(rows)])
    ax.set(xlabel="share of a training step's memory on one process (%); hatched: predicted", xlim=(0, 115))
    ax.set_xticks(range(0, 101, 20))
    ax.grid(visible=False, axis="y")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=len(STEP_PARTS))
    shares = {name: measured.activations / measured.total for name, (measured, _) in rows.items()}
    least, most = min(shares, key=shares.get), max(shares, key=shares.get)
    low, high = percent(shares[least], ".0f"), percent(shares[most], ".0f")
    worst = max(abs(predicted.total / measured.total - 1) for measured, predicted in rows.values())
    finding = f"activations take from {low} of a step's memory ({least.partition(',')[0]})"
    finding += f" to {high} ({most.partition(',')[0]})"
    at_most = max(math.ceil(round(1e4 * worst, 6)), 1) / 1e4
    set_finding(figure, f"{finding}; predictions are off by at most {percent(at_most, '.2f')}")
    return figure


def _points(ax: Axes, values: Mapping[int, Sequence[int]], **style: str) -> None:
    means = [sum(each) / len(each) / MIB for each in values.values()]
    bars = [
        [mean - min(each) / MIB for mean, each in zip(means, values.values(), strict=True)],
        [max(each) / MIB - mean for mean, each in zip(means, values.values(), strict=True)],
    ]
    ax.errorbar(list(values), means, yerr=bars, linestyle="none", capsize=2, **style)


def _line(ax: Axes, measured_to: int, form: object, **style: str) -> None:
    for ranks, dashes in ((range(1, measured_to + 1), "-"), (range(measured_to, MOST_RANKS + 1), "--")):
        ax.plot(ranks, [form(n) / MIB for n in ranks], dashes, linewidth=1, **style)
