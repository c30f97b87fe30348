"""Timing records to figures, in the style of plots. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddp_workbook.plots import BLUE, GREEN, GREY, ORANGE, new_figure
from ddp_workbook.scaling import Interval, bound_shares, median_interval, speedup_table, spread_words, workers
from ddp_workbook.timings import Arrangement, BenchmarkRecord, Role

ROLE_COLOURS: dict[Role, str] = {"serial": BLUE, "bound": GREY, "distributed": ORANGE}
BASELINE_STYLES = ((BLUE, "o"), (GREEN, "s"))


def _reach(found: Sequence[Interval]) -> list[list[float]]:
    """Matplotlib's error bars: how far the intervals reach below and above their values."""
    return [[one.value - one.low for one in found], [one.high - one.value for one in found]]


def _bar(ax: Axes, place: float, found: Interval, colour: str) -> None:
    """A bar with its interval and its number."""
    ax.bar(place, found.value, width=0.5, color=colour, alpha=0.85)
    ax.errorbar(place, found.value, yerr=_reach([found]), color="black", capsize=5, linewidth=1.2)
    ax.text(place, found.value / 2, f"{found.value:.2f}", ha="center", color="white", fontsize=11)


def speedup_analysis(record: BenchmarkRecord) -> Figure:
    """Every round's rate, and the first process count's speedup over each serial baseline and over its bound."""
    figure, (pair,) = new_figure(1, 2, 11, 4)
    rates, ratios = pair
    _draw_all_rates(rates, record)
    run = record.by_role("distributed")[0]
    rows = [row for row in speedup_table(record) if row.run == run.name]
    for place, row in enumerate(rows):
        ideal = row.speedup.value / row.efficiency.value
        _bar(ratios, place, row.speedup, ORANGE)
        ratios.hlines(ideal, place - 0.35, place + 0.35, color=GREY, linestyle="--")
        ratios.text(place + 0.36, ideal, "ideal", color=GREY, va="center", fontsize=8)
    _bar(ratios, len(rows), bound_shares(record)[run.name], GREY)
    labels = ["over " + row.baseline.replace(", ", ",\n") for row in rows] + ["share of the\nno-communication\nbound"]
    ratios.set(xticks=range(len(labels)), xticklabels=labels, ylabel="ratio of rates", xlim=(-0.6, len(rows) + 0.6))
    ratios.axhline(1, color="black", linewidth=0.8)
    ratios.set_title(f"{run.processes} processes, {spread_words(record.rounds)}")
    ratios.margins(y=0.15)
    return figure


def _draw_all_rates(ax: Axes, record: BenchmarkRecord) -> None:
    for place, arrangement in enumerate(record.arrangements):
        _draw_rates(ax, place, arrangement)
    names = [one.name.replace(", ", "\n") for one in record.arrangements]
    ax.set(xticks=range(len(names)), ylabel="training, images/s", ylim=(0, None), xlim=(-0.5, len(names) - 0.2))
    ax.set_xticklabels(names, fontsize=8)
    ax.set_title(f"Rate, {record.rounds} interleaved rounds, median and {spread_words(record.rounds)}", fontsize=10)


def _draw_rates(ax: Axes, place: int, arrangement: Arrangement) -> None:
    """Every round as a dot, spread sideways in order of time; the median with its interval as a bar."""
    samples, colour = arrangement.images_per_second, ROLE_COLOURS[arrangement.role]
    middle = median_interval(samples)
    ax.plot(place + np.linspace(-0.18, 0.18, len(samples)), samples, "o", color=colour, alpha=0.45, markersize=5)
    ax.errorbar(
        place, middle.value, yerr=_reach([middle]), fmt="_", color="black", markersize=18, capsize=5, linewidth=1.2
    )
    ax.text(place + 0.24, middle.value, f"{middle.value:.0f}", va="center", fontsize=8)


def _mark_oversubscribed(ax: Axes, record: BenchmarkRecord) -> None:
    """Shade the process counts that have to share cores."""
    cores, most = record.environment.cores, max(one.processes for one in record.arrangements)
    if record.environment.device == "cpu" and most > cores:
        ax.axvspan(cores * 2**0.5, most * 2**0.25, color=GREY, alpha=0.12, linewidth=0)
        ax.text(most * 2**0.2, 0.02, "oversubscribed", transform=ax.get_xaxis_transform(), fontsize=8, ha="right")


def _process_axis(ax: Axes, record: BenchmarkRecord) -> None:
    counts = [1, *(one.processes for one in record.by_role("distributed"))]
    ax.set_xscale("log", base=2)
    ax.set(xticks=counts, xticklabels=counts, xlabel="processes", xlim=(2**-0.25, max(counts) * 2**0.25))
    ax.minorticks_off()
    _mark_oversubscribed(ax, record)


def speedup_by_processes(record: BenchmarkRecord) -> Figure:
    """Speedup over each serial baseline against the number of processes, with the ideal and the bound."""
    figure, axes = new_figure(1, 1, 7, 4.2)
    ax = axes[0, 0]
    counts = [one.processes for one in record.by_role("distributed")]
    shares = list(bound_shares(record).values())
    for (colour, marker), baseline in zip(BASELINE_STYLES, record.by_role("serial"), strict=False):
        found = [row.speedup for row in speedup_table(record) if row.baseline == baseline.name]
        values = [one.value for one in found]
        ax.errorbar(
            counts, values, yerr=_reach(found), color=colour, marker=marker, capsize=4, label=f"over {baseline.name}"
        )
        bound = [value / share.value for value, share in zip(values, shares, strict=True)]
        ax.plot(counts, bound, color=colour, linestyle=":", label="same, if nothing were communicated")
    ideal = [workers(one, record.environment) for one in record.by_role("distributed")]
    ax.plot([1, *counts], [1, *ideal], color=GREY, linestyle="--", linewidth=1, label="every core put to full use")
    ax.axhline(1, color="black", linewidth=0.8)
    _process_axis(ax, record)
    ax.set(
        ylabel="speedup (1 = no gain)",
        ylim=(0, None),
        title=f"{record.recipe}, {record.scaling} scaling, {spread_words(record.rounds)}",
    )
    ax.legend(fontsize=8)
    return figure


def efficiency_by_processes(record: BenchmarkRecord) -> Figure:
    """Efficiency over each serial baseline, and the share of the no-communication bound."""
    figure, axes = new_figure(1, 1, 7, 4.2)
    ax = axes[0, 0]
    counts = [one.processes for one in record.by_role("distributed")]
    for (colour, marker), baseline in zip(BASELINE_STYLES, record.by_role("serial"), strict=False):
        found = [row.efficiency for row in speedup_table(record) if row.baseline == baseline.name]
        found = [Interval(100 * one.value, 100 * one.low, 100 * one.high) for one in found]
        values, label = [one.value for one in found], f"of the cores used, over {baseline.name}"
        ax.errorbar(counts, values, yerr=_reach(found), color=colour, marker=marker, capsize=4, label=label)
    shares = [Interval(100 * s.value, 100 * s.low, 100 * s.high) for s in bound_shares(record).values()]
    label = "share of the no-communication bound"
    ax.errorbar(
        counts, [s.value for s in shares], yerr=_reach(shares), color=ORANGE, marker="^", capsize=4, label=label
    )
    ax.axhline(100, color="black", linewidth=0.8)
    _process_axis(ax, record)
    ax.set(
        ylabel="efficiency (%)",
        ylim=(0, None),
        title=f"{record.recipe}, {record.scaling} scaling, {spread_words(record.rounds)}",
    )
    ax.legend(fontsize=8)
    return figure


def loss_curves(record: BenchmarkRecord) -> Figure:
    """Training loss against the images seen, the mean over the rounds; bounds are left out."""
    figure, axes = new_figure(1, 1, 7, 4.2)
    ax = axes[0, 0]
    trained = [one for one in record.arrangements if one.role != "bound"]
    shades = [BLUE, GREEN, ORANGE, "#CC79A7", "#E69F00", "#56B4E9"]
    for place, one in enumerate(trained):
        losses = np.mean(one.losses, axis=0)
        images = one.images_per_round * np.arange(1, len(losses) + 1) / len(losses)
        style = ["-", "--", ":", "-."][place % 4]
        ax.plot(images, losses, style, color=shades[place % len(shades)], label=one.name, alpha=0.9)
    ax.set(xlabel="training images seen", ylabel="training loss (nats)", ylim=(0, None))
    ax.set_title(f"{record.recipe}, mean of {record.rounds} trainings")
    ax.legend(fontsize=8)
    return figure


def training_comparison(record: BenchmarkRecord) -> Figure:
    """Every round's rate of every arrangement, and where whole trainings were timed their accuracy."""
    tested = [one for one in record.arrangements if one.accuracies]
    wide = 2.2 + 1.15 * len(record.arrangements)
    figure, axes = new_figure(1, 2 if tested else 1, wide * (1.6 if tested else 1), 4.4)
    _draw_all_rates(axes[0, 0], record)
    if tested:
        ax = axes[0, 1]
        for place, one in enumerate(tested):
            found = 100 * np.array(one.accuracies)
            spread = np.linspace(-0.15, 0.15, len(found))
            ax.plot(place + spread, found, "o", color=ROLE_COLOURS[one.role], alpha=0.6)
            ax.plot(place, np.median(found), "_", color="black", markersize=18)
        names = [one.name.replace(", ", "\n") for one in tested]
        ax.set(xticks=range(len(names)), ylabel="test images classified right (%)", title="Test accuracy by round")
        ax.set_xticklabels(names, fontsize=8)
    return figure
