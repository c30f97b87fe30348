"""Figures of benchmarks and experiments. Baselines are told apart by marker and line, a bound is a grey marker."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ddp_workbook.analysis.plots_style import BLUE, GREY, INK, ORANGE, error_bars, new_figure, scaled, set_finding
from ddp_workbook.analysis.speedup import speedup, speedup_table, upper_bound_shares, workers
from ddp_workbook.analysis.statistics import median_interval, spread_words
from ddp_workbook.errors import InputError
from ddp_workbook.records.timing import BenchmarkRecord, Configuration, Interval, Role

ROLE_COLOURS: dict[Role, str] = {"serial": BLUE, "no-communication": GREY, "distributed": ORANGE}
BASELINES = (("o", "-"), ("s", "--"), ("^", ":"))  # marker and line of each serial baseline
HOOKS = {"allreduce": "all-reduce", "shared-memory": "shared memory"}


def speedup_analysis(record: BenchmarkRecord) -> Figure:
    """Every round's rate; below, the first process count's speedup over each baseline, with bound and ideal."""
    count, baselines = len(record.configurations), record.by_role("serial")
    heights = [count, len(baselines)]
    figure, axes = new_figure(2, 1, height=1.9 + 0.36 * sum(heights), height_ratios=heights)
    rates, ratios = axes[:, 0]
    _draw_rates(rates, record.configurations)
    rates.set(
        xlabel=f"training, images/s: {record.rounds} interleaved rounds, median and {spread_words(record.rounds)}"
    )
    run, bound = record.by_role("distributed")[0], record.by_role("no-communication")[0]
    rows = [row for row in speedup_table(record) if row.run == run.name]
    for y, (row, baseline) in enumerate(zip(rows, baselines, strict=True)):
        reached = speedup(bound.images_per_second, baseline.images_per_second)
        _draw_speedup(ratios, y, row.speedup, reached, BASELINES[y % 3][0])
        ratios.plot([row.speedup.value / row.efficiency.value] * 2, [y - 0.3, y + 0.3], color=INK, linestyle="--")
    _speedup_axis(ratios, [f"over {_broken(row.baseline)}" for row in rows])
    ratios.set_xlabel(f"speedup of {run.name} (1 = no gain), {spread_words(record.rounds)}")
    _legend(figure, ideal=True)
    values = ", ".join(f"{row.speedup.value:.2f} over {_said(row.baseline)}" for row in rows)
    set_finding(figure, f"Speedup of {run.processes} processes: {values}")
    return figure


def _said(name: str) -> str:
    """A configuration's name in a sentence that has commas of its own."""
    return name.replace(", ", " with ", 1)


def _broken(name: str) -> str:
    """A configuration's name in at most two lines."""
    name = name.replace("not communicating", "no communication")
    first, *rest = name.split(", ")
    return name if len(name) <= 28 else ", ".join([first, *rest[:-1]]) + ",\n" + rest[-1]


def _draw_rates(ax: Axes, configurations: Sequence[Configuration]) -> None:
    """A row for each configuration: every round as a dot, from top to bottom in order of time; median and interval."""
    for y, each in enumerate(configurations):
        samples, median = each.images_per_second, median_interval(each.images_per_second)
        spread = y + np.linspace(-0.22, 0.22, len(samples))
        ax.plot(samples, spread, "o", color=ROLE_COLOURS[each.role], alpha=0.5, markeredgewidth=0)
        ax.errorbar(
            median.value, y, xerr=error_bars([median]), fmt="|", color=INK, markersize=13, capsize=3, linewidth=1.2
        )
        _write_interval(ax, y, median, ".0f")
    _rows(ax, [_broken(each.name) for each in configurations])
    ax.set_xlim(0, None)


def _write_interval(ax: Axes, y: float, interval: Interval, spec: str) -> None:
    """The numbers of a row, right of the axes."""
    ax.text(1.01, y, interval.text(spec), transform=ax.get_yaxis_transform(), va="center", fontsize=8)


def _rows(ax: Axes, names: Sequence[str]) -> None:
    ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    ax.grid(False, axis="y")


def _draw_speedup(ax: Axes, y: float, ratio: Interval, bound: Interval, marker: str) -> None:
    """Speedup in orange, with its numbers; a little below it, the upper bound without communication in grey."""
    style = {"fmt": marker, "capsize": 3, "markersize": 5}
    ax.errorbar(ratio.value, y - 0.12, xerr=error_bars([ratio]), color=ORANGE, **style)
    ax.errorbar(bound.value, y + 0.2, xerr=error_bars([bound]), color=GREY, markerfacecolor="white", **style)
    _write_interval(ax, y, ratio, ".2f")


def _speedup_axis(ax: Axes, names: Sequence[str]) -> None:
    _rows(ax, names)
    ax.axvline(1, color=INK, linewidth=0.8)
    ax.set_xlim(0, None)


def _legend(figure: Figure, ideal: bool) -> None:
    style = {"linestyle": "none", "marker": "s"}
    handles = [Line2D([], [], color=ORANGE, label="DDP", **style)]
    handles += [
        Line2D([], [], color=GREY, markerfacecolor="white", label="the same processes, no communication", **style)
    ]
    if ideal:
        handles += [Line2D([], [], color=BLUE, label="baseline", **style)]
        handles += [Line2D([], [], color=INK, linestyle="--", label="ideal")]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def scaling_comparison(strong: BenchmarkRecord, weak: BenchmarkRecord) -> Figure:
    """Speedup over one process with one thread and on all cores: the batch split among processes, or whole for each."""
    baselines = list(dict.fromkeys(strong.by_role("serial")[i].name for i in (0, -1)))
    figure, axes = new_figure(1, 1, height=1.5 + 0.85 * len(baselines))
    ax, names, last = axes[0, 0], [], []
    for baseline in baselines:
        last = []
        for record, marker in ((strong, "o"), (weak, "D")):
            serial, run, bound = _trio(record, baseline)
            ratio = speedup(run.images_per_second, serial.images_per_second)
            _draw_speedup(ax, len(names), ratio, speedup(bound.images_per_second, serial.images_per_second), marker)
            names.append(f"over {baseline}\n{_scaling_words(record, run)}")
            last.append(f"{ratio.value:.2f} ({_scaling_words(record, run)})")
    _speedup_axis(ax, names)
    for edge in range(2, len(names), 2):
        ax.axhline(edge - 0.5, color=GREY, linewidth=0.6)
    spreads = " and ".join(dict.fromkeys(spread_words(record.rounds) for record in (strong, weak)))
    ax.set_xlabel(f"speedup of {run.processes} processes (1 = no gain), {spreads}")
    _legend(figure, ideal=False)
    set_finding(figure, f"{run.processes} processes over {_said(baselines[-1])}: {', '.join(last)}")
    return figure


def _trio(record: BenchmarkRecord, baseline: str) -> tuple[Configuration, Configuration, Configuration]:
    """The baseline of this name, the first distributed configuration, and its upper bound."""
    serial = [each for each in record.by_role("serial") if each.name == baseline]
    if not serial:
        raise InputError(f"the {record.scaling}-scaling benchmark has no baseline {baseline!r}; measure it again")
    return serial[0], record.by_role("distributed")[0], record.by_role("no-communication")[0]


def _scaling_words(record: BenchmarkRecord, run: Configuration) -> str:
    """How the images are dealt out, and the road that the gradients take."""
    hook = HOOKS.get(record.config.comm_hook, record.config.comm_hook)
    whole = f"{run.batch_size} images each" if record.scaling == "weak" else f"{run.global_batch} images split"
    return f"{whole}, {hook}"


def _counts(record: BenchmarkRecord) -> list[int]:
    """The process counts of the distributed configurations."""
    return [run.processes for run in record.by_role("distributed")]


def _process_axis(ax: Axes, record: BenchmarkRecord, counts: Sequence[int]) -> None:
    """Axis of process counts, with those shaded that share cores."""
    ax.set_xscale("log", base=2)
    ax.set(xticks=counts, xticklabels=counts, xlabel="processes")
    ax.set_xlim(counts[0] * 2**-0.25, counts[-1] * 2**0.4)
    ax.minorticks_off()
    cores, most = record.environment.cores, max(counts)
    if record.environment.device == "cpu" and most > cores:
        ax.axvspan(cores * 2**0.5, most * 2**0.4, color=GREY, alpha=0.12, linewidth=0)
        ax.text(most * 2**0.37, 0.02, "oversubscribed", transform=ax.get_xaxis_transform(), fontsize=8, ha="right")
    ax.set_ylim(0, None)
    ax.figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)


def _line(ax: Axes, counts: Sequence[int], values: Sequence[Interval], number: int, side: int, **style: object) -> None:
    """One measured line over the process counts; a little to the side, so that lines do not hide each other."""
    x, (marker, line) = np.array(counts) * 2 ** (0.1 * number + 0.05 * side), BASELINES[number % 3]
    style = {"marker": marker, "linestyle": line, "capsize": 3, "markersize": 5, "linewidth": 1.2} | style
    ax.errorbar(x, [value.value for value in values], yerr=error_bars(values), **style)


def speedup_by_processes(record: BenchmarkRecord) -> Figure:
    """Speedup over each serial baseline against the number of processes, with the ideal and the upper bound."""
    figure, axes = new_figure(1, 1, height=3.6)
    ax, counts, rows = axes[0, 0], _counts(record), speedup_table(record)
    bounds = record.by_role("no-communication")
    for number, baseline in enumerate(record.by_role("serial")):
        speedups = [row.speedup for row in rows if row.baseline == baseline.name]
        reached = [speedup(bound.images_per_second, baseline.images_per_second) for bound in bounds]
        _line(ax, counts, speedups, number, 0, color=ORANGE, label=f"DDP over {baseline.name}")
        _line(
            ax,
            counts,
            reached,
            number,
            1,
            color=GREY,
            markerfacecolor="white",
            label=f"no communication, over {baseline.name}",
        )
    kind = "core" if record.environment.device == "cpu" else "device"
    ideal = [workers(run, record.environment) for run in record.by_role("distributed")]
    ax.plot([1, *counts], [1, *ideal], color=INK, linestyle=(0, (6, 3)), linewidth=0.8, label=f"ideal over 1 {kind}")
    if ideal[-1] < counts[-1]:
        bend = counts[ideal.index(ideal[-1])]
        ax.text(bend, ideal[-1] + 0.03 * ax.get_ylim()[1], f"only {ideal[-1]} {kind}s", fontsize=8, va="bottom")
    ax.axhline(1, color=INK, linewidth=0.8)
    ax.set_ylabel(f"speedup, {spread_words(record.rounds)}")
    _process_axis(ax, record, [1, *counts])
    last = record.by_role("serial")[-1].name
    best = max((row for row in rows if row.baseline == last), key=lambda row: row.speedup.value)
    finding = (
        f"{record.recipe}, {record.scaling} scaling: at best {best.speedup.value:.2f} times {_said(best.baseline)}"
    )
    set_finding(figure, f"{finding} ({best.run})")
    return figure


def efficiency_by_processes(record: BenchmarkRecord) -> Figure:
    """Efficiency over each serial baseline, and the share of the no-communication upper bound."""
    figure, axes = new_figure(1, 1, height=3.6)
    ax, counts, rows = axes[0, 0], _counts(record), speedup_table(record)
    for number, baseline in enumerate(record.by_role("serial")):
        shares = scaled([row.efficiency for row in rows if row.baseline == baseline.name], 100)
        _line(ax, counts, shares, number, 0, color=ORANGE, label=f"of the ideal, over {baseline.name}")
    shares = scaled(list(upper_bound_shares(record).values()), 100)
    _line(ax, counts, shares, 0, 1, color=INK, marker="D", label="of the same processes without communication")
    ax.axhline(100, color=INK, linewidth=0.8)
    ax.set_ylabel(f"efficiency (%), {spread_words(record.rounds)}")
    _process_axis(ax, record, counts)
    words = ", ".join(f"{share.value:.0f}\u00a0% with {count}" for count, share in zip(counts, shares, strict=True))
    set_finding(figure, f"{record.recipe}: share of the rate without communication: {words} processes")
    return figure


def loss_curves(record: BenchmarkRecord) -> Figure:
    """Training loss against the images seen, mean over the rounds, of all configurations that train one model."""
    figure, axes = new_figure(1, 1, height=3.4)
    ax, ends = axes[0, 0], []
    for role in ("serial", "distributed"):
        for number, each in enumerate(record.by_role(role)):
            losses = np.mean(each.losses, axis=0)
            images = each.images_per_round * np.arange(1, len(losses) + 1) / len(losses)
            style = ["-", "--", ":", "-."][number % 4]
            ax.plot(images, losses, style, color=ROLE_COLOURS[role], label=each.name, alpha=0.8, linewidth=1.4)
            ends.append(losses[-1])
    ax.set(xlabel="training images seen", ylabel="training loss (nats)", ylim=(0, None))
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    words = f"{min(ends):.2f} to {max(ends):.2f}"
    set_finding(figure, f"{record.recipe}: last loss {words}, mean of {record.rounds} trainings of each configuration")
    return figure


def training_comparison(record: BenchmarkRecord) -> Figure:
    """Every round's rate of every configuration; where whole trainings were timed, their test accuracy too."""
    tested = [each for each in record.configurations if each.accuracies]
    heights = [len(record.configurations), *([len(tested)] if tested else [])]
    height = 1 + 0.6 * len(heights) + 0.36 * sum(heights)
    figure, axes = new_figure(len(heights), 1, height=height, height_ratios=heights)
    _draw_rates(axes[0, 0], record.configurations)
    axes[0, 0].set_xlabel(f"training, images/s: every round, median and {spread_words(record.rounds)}")
    if tested:
        ax = axes[1, 0]
        for y, each in enumerate(tested):
            accuracies = 100 * np.array(each.accuracies)
            spread = y + np.linspace(-0.2, 0.2, len(accuracies))
            ax.plot(accuracies, spread, "o", color=ROLE_COLOURS[each.role], alpha=0.6, markeredgewidth=0)
            ax.plot(np.median(accuracies), y, "|", color=INK, markersize=13)
        _rows(ax, [_broken(each.name) for each in tested])
        ax.set_xlabel("correct predictions on test images (%): every round, median")
    medians = {each.name: float(np.median(each.images_per_second)) for each in record.configurations}
    fastest = max((each.name for each in record.configurations if each.role != "no-communication"), key=medians.get)
    set_finding(figure, f"{record.recipe}: fastest with {fastest}, {medians[fastest]:.0f} images/s")
    return figure
