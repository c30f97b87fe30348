"""Figures of benchmarks and experiments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddp_workbook.analysis.plots import BLUE, GREEN, GREY, ORANGE, error_bars, new_figure, scaled
from ddp_workbook.analysis.speedup import speedup_table, upper_bound_shares, workers
from ddp_workbook.analysis.statistics import median_interval, spread_words
from ddp_workbook.records.timing import BenchmarkRecord, Configuration, Interval, Role

ROLE_COLOURS: dict[Role, str] = {"serial": BLUE, "no-communication": GREY, "distributed": ORANGE}
BASELINE_STYLES = ((BLUE, "o"), (GREEN, "s"))


def _bar(ax: Axes, x: float, interval: Interval, colour: str) -> None:
    """A bar with its interval and its number."""
    ax.bar(x, interval.value, width=0.5, color=colour, alpha=0.85)
    ax.errorbar(x, interval.value, yerr=error_bars([interval]), color="black", capsize=5, linewidth=1.2)
    ax.text(x, interval.value / 2, f"{interval.value:.2f}", ha="center", color="white", fontsize=11)


def speedup_analysis(record: BenchmarkRecord) -> Figure:
    """Every round's rate; the first process count's speedup over each baseline and share of its upper bound."""
    figure, (pair,) = new_figure(1, 2, 11, 4)
    rates, ratios = pair
    _draw_all_rates(rates, record)
    run = record.by_role("distributed")[0]
    rows = [row for row in speedup_table(record) if row.run == run.name]
    for x, row in enumerate(rows):
        ideal = row.speedup.value / row.efficiency.value
        _bar(ratios, x, row.speedup, ORANGE)
        ratios.hlines(ideal, x - 0.35, x + 0.35, color=GREY, linestyle="--")
        ratios.text(x + 0.36, ideal, "ideal", color=GREY, va="center", fontsize=8)
    _bar(ratios, len(rows), upper_bound_shares(record)[run.name], GREY)
    labels = ["over " + row.baseline.replace(", ", ",\n") for row in rows] + [
        "share of the\nno-communication\nupper bound"
    ]
    ratios.set(xticks=range(len(labels)), xticklabels=labels, ylabel="ratio of rates", xlim=(-0.6, len(rows) + 0.6))
    ratios.axhline(1, color="black", linewidth=0.8)
    ratios.set_title(f"{run.processes} processes, {spread_words(record.rounds)}")
    ratios.margins(y=0.15)
    return figure


def _draw_all_rates(ax: Axes, record: BenchmarkRecord) -> None:
    for x, configuration in enumerate(record.configurations):
        _draw_rates(ax, x, configuration)
    names = _names(record.configurations)
    ax.set(xticks=range(len(names)), ylabel="training, images/s", ylim=(0, None), xlim=(-0.5, len(names) - 0.2))
    ax.set_xticklabels(names, fontsize=8)
    ax.set_title(f"Rate, {record.rounds} interleaved rounds, median and {spread_words(record.rounds)}", fontsize=10)


def _names(configurations: Sequence[Configuration]) -> list[str]:
    """Their names, broken into lines."""
    return [configuration.name.replace(", ", "\n") for configuration in configurations]


def _draw_rates(ax: Axes, x: float, configuration: Configuration) -> None:
    """Every round as a dot, spread sideways in order of time; the median with its interval as a bar."""
    samples, colour = configuration.images_per_second, ROLE_COLOURS[configuration.role]
    median = median_interval(samples)
    ax.plot(x + np.linspace(-0.18, 0.18, len(samples)), samples, "o", color=colour, alpha=0.45, markersize=5)
    ax.errorbar(
        x, median.value, yerr=error_bars([median]), fmt="_", color="black", markersize=18, capsize=5, linewidth=1.2
    )
    ax.text(x + 0.24, median.value, f"{median.value:.0f}", va="center", fontsize=8)


def _counts(record: BenchmarkRecord) -> list[int]:
    """The process counts of the distributed configurations."""
    return [run.processes for run in record.by_role("distributed")]


def _process_axis(ax: Axes, record: BenchmarkRecord) -> None:
    """Axis of process counts, with those shaded that share cores; title and legend."""
    counts = [1, *_counts(record)]
    ax.set_xscale("log", base=2)
    ax.set(xticks=counts, xticklabels=counts, xlabel="processes", xlim=(2**-0.25, max(counts) * 2**0.25))
    ax.minorticks_off()
    cores, most = record.environment.cores, max(counts)
    if record.environment.device == "cpu" and most > cores:
        ax.axvspan(cores * 2**0.5, most * 2**0.25, color=GREY, alpha=0.12, linewidth=0)
        ax.text(most * 2**0.2, 0.02, "oversubscribed", transform=ax.get_xaxis_transform(), fontsize=8, ha="right")
    ax.set_title(f"{record.recipe}, {record.scaling} scaling, {spread_words(record.rounds)}")
    ax.set_ylim(0, None)
    ax.legend(fontsize=8)


def speedup_by_processes(record: BenchmarkRecord) -> Figure:
    """Speedup over each serial baseline against the number of processes, with the ideal and the upper bound."""
    figure, axes = new_figure(1, 1, 7, 4.2)
    ax, counts, rows = axes[0, 0], _counts(record), speedup_table(record)
    shares = list(upper_bound_shares(record).values())
    for (colour, marker), baseline in zip(BASELINE_STYLES, record.by_role("serial"), strict=False):
        speedups = [row.speedup for row in rows if row.baseline == baseline.name]
        values = [speedup.value for speedup in speedups]
        style = {"color": colour, "marker": marker, "capsize": 4, "label": f"over {baseline.name}"}
        ax.errorbar(counts, values, yerr=error_bars(speedups), **style)
        bound = [value / share.value for value, share in zip(values, shares, strict=True)]
        ax.plot(counts, bound, color=colour, linestyle=":", label="same, without communication")
    ideal = [workers(run, record.environment) for run in record.by_role("distributed")]
    ax.plot([1, *counts], [1, *ideal], color=GREY, linestyle="--", linewidth=1, label="ideal: every core fully used")
    ax.axhline(1, color="black", linewidth=0.8)
    ax.set_ylabel("speedup (1 = no gain)")
    _process_axis(ax, record)
    return figure


def efficiency_by_processes(record: BenchmarkRecord) -> Figure:
    """Efficiency over each serial baseline, and the share of the no-communication upper bound."""
    figure, axes = new_figure(1, 1, 7, 4.2)
    ax, counts, rows = axes[0, 0], _counts(record), speedup_table(record)
    lines = []
    for (colour, marker), baseline in zip(BASELINE_STYLES, record.by_role("serial"), strict=False):
        shares = [row.efficiency for row in rows if row.baseline == baseline.name]
        lines.append((shares, colour, marker, f"of the cores used, over {baseline.name}"))
    shares = list(upper_bound_shares(record).values())
    lines.append((shares, ORANGE, "^", "share of the no-communication upper bound"))
    for shares, colour, marker, label in lines:
        percent = scaled(shares, 100)
        values = [share.value for share in percent]
        ax.errorbar(counts, values, yerr=error_bars(percent), color=colour, marker=marker, capsize=4, label=label)
    ax.axhline(100, color="black", linewidth=0.8)
    ax.set_ylabel("efficiency (%)")
    _process_axis(ax, record)
    return figure


def loss_curves(record: BenchmarkRecord) -> Figure:
    """Training loss against the images seen, mean over the rounds, of all configurations that train one model."""
    figure, axes = new_figure(1, 1, 7, 4.2)
    ax = axes[0, 0]
    trained = [each for each in record.configurations if each.role != "no-communication"]
    shades = [BLUE, GREEN, ORANGE, "#CC79A7", "#E69F00", "#56B4E9"]
    for number, each in enumerate(trained):
        losses = np.mean(each.losses, axis=0)
        images = each.images_per_round * np.arange(1, len(losses) + 1) / len(losses)
        style = ["-", "--", ":", "-."][number % 4]
        ax.plot(images, losses, style, color=shades[number % len(shades)], label=each.name, alpha=0.9)
    ax.set(xlabel="training images seen", ylabel="training loss (nats)", ylim=(0, None))
    ax.set_title(f"{record.recipe}, mean of {record.rounds} trainings")
    ax.legend(fontsize=8)
    return figure


def training_comparison(record: BenchmarkRecord) -> Figure:
    """Every round's rate of every configuration; where whole trainings were timed, their test accuracy too."""
    tested = [each for each in record.configurations if each.accuracies]
    wide = 2.2 + 1.15 * len(record.configurations)
    figure, axes = new_figure(1, 2 if tested else 1, wide * (1.6 if tested else 1), 4.4)
    _draw_all_rates(axes[0, 0], record)
    if tested:
        ax = axes[0, 1]
        for x, each in enumerate(tested):
            accuracies = 100 * np.array(each.accuracies)
            spread = np.linspace(-0.15, 0.15, len(accuracies))
            ax.plot(x + spread, accuracies, "o", color=ROLE_COLOURS[each.role], alpha=0.6)
            ax.plot(x, np.median(accuracies), "_", color="black", markersize=18)
        ax.set(xticks=range(len(tested)), ylabel="correct predictions on test images (%)", title="Accuracy by round")
        ax.set_xticklabels(_names(tested), fontsize=8)
    return figure
