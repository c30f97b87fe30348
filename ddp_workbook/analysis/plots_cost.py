"""Figures of the step-time breakdown and of the cost model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from ddp_workbook.analysis import costmodel
from ddp_workbook.analysis.costmodel import SETTLED_WIDTH, Link, ModelCosts, fit_link, is_settled, measured_speedup
from ddp_workbook.analysis.plots import BLUE, GREEN, GREY, ORANGE, error_bars, new_figure, scaled
from ddp_workbook.analysis.statistics import mean_interval
from ddp_workbook.records.timing import AllReduceBenchmark, BatchSweep, Interval, StepBreakdown, Timeline
from ddp_workbook.specs import MODELS

PARTS = {"data": "#E69F00", "forward": "#56B4E9", "backward": BLUE, "optimizer": GREEN}


def step_breakdown(record: StepBreakdown) -> Figure:
    """Median milliseconds of a step's parts with and without synchronization; below, the summed collectives."""
    figure, axes = new_figure(1, 1, 8.5, 2.8)
    ax = axes[0, 0]
    for row, ranks in enumerate((record.no_sync, record.synced)):
        left = 0.0
        for part, colour in PARTS.items():
            value = 1000 * float(np.median([getattr(step, part) for rank in ranks for step in rank]))
            ax.barh(row, value, left=left, color=colour, label=part if row == 0 else None)
            left += value
    summed = 1000 * costmodel.summed_collectives(record)
    ax.barh(2, summed, color=GREY, hatch="///", edgecolor="white", label="collectives, summed")
    ax.set_title(
        f"{record.recipe}, {record.processes} processes x {record.threads} thread(s), batch {record.config.batch_size} "
        f"each: exposed {costmodel.exposed(record).text('.2f', scale=1000)} ms",
        fontsize=9,
    )
    ax.set(yticks=range(3), xlabel="milliseconds (median over steps and ranks)")
    ax.set_yticklabels(["step under no_sync", "synchronized step", "collectives, summed"])
    ax.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=5, fontsize=8)
    return figure


def timeline(step: Timeline, title: str) -> Figure:
    """One measured step: what the processor computes, and each bucket from ready to all-reduced."""
    figure, axes = new_figure(1, 1, 9, 1.7 + 0.28 * len(step.buckets))
    ax = axes[0, 0]
    marks = [1000 * mark for mark in step.marks]
    for (part, colour), begin, end in zip(PARTS.items(), marks[:-1], marks[1:], strict=True):
        ax.barh(0, end - begin, left=begin, color=colour, label=part)
    last = 1000 * step.buckets[-1].ready
    for row, bucket in enumerate(step.buckets, start=1):
        ready, done = 1000 * bucket.ready, 1000 * bucket.done
        hidden = max(min(done, last) - ready, 0)
        label = "all-reduce during backward" if row == 1 else None
        ax.barh(row, hidden, left=ready, color="#CC79A7", label=label)
        style = {"color": ORANGE, "hatch": "///", "edgecolor": "white"}
        label = "all-reduce after the last gradient" if row == 1 else None
        ax.barh(row, done - ready - hidden, left=ready + hidden, **style, label=label)
        ax.text(done, row, f"  {_size(bucket.bytes)}", va="center", fontsize=8)
    names = ["rank 0 computes", *(f"bucket {number}" for number in range(1, len(step.buckets) + 1))]
    ax.set(yticks=range(len(names)), yticklabels=names, xlabel="milliseconds since the step began", title=title)
    ax.set_xlim(0, marks[-1] * 1.08)
    ax.axvline(last, color="black", linestyle=":", linewidth=1)
    ax.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=6, fontsize=8)
    return figure


def _size(count: int) -> str:
    """Bytes in MiB or KiB."""
    return f"{count / 2**20:.3g} MiB" if count >= 2**20 else f"{count / 2**10:.3g} KiB"


def all_reduce_fit(measured: AllReduceBenchmark) -> Figure:
    """Measured all-reduces and the fitted line; and what each process sends, against the number of processes."""
    figure, (pair,) = new_figure(1, 2, 10, 3.6)
    times, volume = pair
    link = fit_link(measured)
    sizes = [sample.bytes for sample in measured.samples]
    means = scaled([mean_interval(sample.seconds) for sample in measured.samples], 1000)
    style = {"fmt": "o", "color": BLUE, "capsize": 3, "label": "measured: mean, 95 % interval"}
    times.errorbar(sizes, [mean.value for mean in means], yerr=error_bars(means), **style)
    line = [1000 * link.all_reduce(size, measured.processes) for size in sizes]
    label = f"fit: latency {1e6 * link.latency:.0f} us, bandwidth {link.bandwidth / 1e9:.2f} GB/s"
    times.plot(sizes, line, color=ORANGE, label=label)
    times.set(xscale="log", yscale="log", xlabel="bytes all-reduced", ylabel="milliseconds")
    times.set_xticks(sizes[::2], labels=[_size(size) for size in sizes[::2]])
    times.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    times.minorticks_off()
    times.set_title(f"All-reduce among {measured.processes} processes")
    times.legend(fontsize=8)
    counts = np.arange(1, 17)
    volume.plot(counts, [costmodel.bytes_moved(1, int(n)) for n in counts], "o-", color=BLUE, markersize=4)
    volume.axhline(2, color=GREY, linestyle="--", linewidth=1)
    volume.set_xticks(range(2, 17, 2))
    volume.set(xlabel="processes N", ylabel="bytes sent by each, per byte reduced", ylim=(0, 2.2))
    volume.set_title("2(N-1)/N: approaches 2, never falls")
    return figure


def pay_map(sweep: BatchSweep) -> Figure:
    """Predicted speedup over one process on all cores by batch size and model (field); measured points on it.

    Each point has its interval. One that is not settled is drawn in grey and does not count for the colour scale.
    """
    figure, axes = new_figure(1, 1, 9, 1.4 + 0.9 * len(sweep.models))
    ax, link = axes[0, 0], fit_link(sweep.all_reduce)
    batches = np.array(sorted({point.images for point in sweep.points})) * sweep.processes
    grid = np.geomspace(batches.min() / 2, batches.max() * 2, 80)
    field = [
        [ModelCosts(sweep, model).speedup_here(batch, sweep.processes, link) for batch in grid]
        for model in sweep.models
    ]
    points = [(row, point) for row, model in enumerate(sweep.models) for point in sweep.of_model(model)]
    settled = [measured_speedup(point).value for _, point in points if is_settled(point)]
    seen = [*np.ravel(field), *settled]
    norm = TwoSlopeNorm(1.0, min(*seen, 0.95), max(*seen, 1.05))
    edges = np.append(grid / (grid[1] / grid[0]) ** 0.5, grid[-1] * (grid[1] / grid[0]) ** 0.5)
    colours = ax.pcolormesh(
        edges, np.arange(len(sweep.models) + 1) - 0.5, field, cmap="PuOr", norm=norm, edgecolors="face"
    )
    for row, point in points:
        _draw_point(ax, sweep.processes * point.images, row, measured_speedup(point), is_settled(point), norm)
    names = [MODELS[model].label for model in sweep.models]
    ax.set(xscale="log", xlabel="global batch (images)", yticks=range(len(names)), yticklabels=names)
    ax.set_xticks(batches, labels=[str(batch) for batch in batches])
    ax.minorticks_off()
    ax.grid(False)
    title = f"{sweep.processes} processes over one process on all cores: predicted (field), measured (circles)"
    if len(settled) < len(points):
        title += f"\ngrey circles are not settled: their interval is wider than {SETTLED_WIDTH:.0%} of the value"
    ax.set_title(title, fontsize=10)
    figure.colorbar(colours, ax=ax, label="speedup (1 = no gain)")
    return figure


def _draw_point(ax: Axes, batch: int, row: int, speedup: Interval, settled: bool, norm: TwoSlopeNorm) -> None:
    """A measured speedup with its interval, in a circle of the map's colour if it is settled."""
    style = {"s": 1100, "linewidth": 1.2, "zorder": 3}
    if settled:
        ax.scatter(batch, row, c=[speedup.value], cmap="PuOr", norm=norm, edgecolor="black", **style)
    else:
        ax.scatter(batch, row, c="#DDDDDD", edgecolor="black", linestyle="--", **style)
    dark = settled and abs(norm(speedup.value) - 0.5) > 0.3  # both ends of the colour map are dark
    ink = {"color": "white" if dark else "black", "ha": "center", "zorder": 4}
    ax.text(batch, row, f"{speedup.value:.2f}", fontsize=8, va="bottom", **ink)
    ax.text(batch, row, f"{speedup.low:.2f} to\n{speedup.high:.2f}", fontsize=5.5, va="top", linespacing=0.9, **ink)


def predicted_here(sweep: BatchSweep, batch: int, measured: Sequence[tuple[int, Interval]] = ()) -> Figure:
    """Predicted speedup of 1 to 16 processes of this machine that split a batch; `measured`: (processes, speedup)."""
    figure, axes = new_figure(1, 1, 7.5, 4)
    ax = axes[0, 0]
    link, counts = fit_link(sweep.all_reduce), list(range(1, 17))
    for model in sweep.models:
        costs = ModelCosts(sweep, model)
        values = [costs.speedup_here(batch, count, link) for count in counts]
        ax.plot(counts, values, color=MODELS[model].colour, label=f"{MODELS[model].label}, predicted")
    for number, (processes, speedup) in enumerate(measured):
        label = None if number else "measured, this recipe (95 % interval)"
        ax.errorbar(processes, speedup.value, error_bars([speedup]), fmt="D", color="black", capsize=3, label=label)
    ax.axhline(1, color="black", linewidth=0.8)
    ax.set(xlabel="processes on this machine", ylabel="speedup over one process on all cores", ylim=(0, None))
    ax.set_title(f"Global batch of {batch}, split among the processes")
    ax.legend(fontsize=8)
    return figure


def predicted_on_network(costs: ModelCosts, batch: int, link: Link, processes: int, title: str) -> Figure:
    """Predicted speedup on a network of machines like this one, with Amdahl's and Gustafson's curves beside it."""
    figure, axes = new_figure(1, 1, 7.5, 4.4)
    ax = axes[0, 0]
    counts = np.unique(np.geomspace(1, processes, 40).round().astype(int))
    fitting = counts[counts <= batch]  # a machine must get at least one image
    strong = [costs.speedup_on_network(batch, int(count), link) for count in fitting]
    weak = [costs.weak_speedup_on_network(batch, int(count), link) for count in counts]
    share = costmodel.serial_share(costs, batch)
    ax.plot(fitting, strong, color=ORANGE, label="strong scaling, predicted")
    ax.plot(counts, weak, color=BLUE, label="weak scaling (batch grows), predicted")
    ax.plot(
        counts, costmodel.amdahl(share, counts), color=ORANGE, linestyle=":", label=f"Amdahl, serial share {share:.1%}"
    )
    ax.plot(counts, costmodel.gustafson(share, counts), color=BLUE, linestyle=":", label="Gustafson, same share")
    ax.plot(counts, counts, color=GREY, linestyle="--", linewidth=1, label="ideal")
    ticks = [2**power for power in range(processes.bit_length())]
    below = range(int(np.floor(np.log2(min(*strong, 1.0)))), 0)
    ax.set(xscale="log", yscale="log", xlabel="machines", ylabel="predicted speedup over one machine")
    ax.set_xticks(ticks, labels=[str(tick) for tick in ticks])
    ax.set_yticks([*(2.0**power for power in below), *ticks])
    ax.set_yticklabels([*(f"1/{2**-power}" for power in below), *map(str, ticks)])
    ax.minorticks_off()
    ax.set_title(title, fontsize=10)
    ax.legend(fontsize=8)
    return figure
