"""Where a step's time goes, what it should cost and when it pays: figures in the style of plots. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from ddp_workbook.costmodel import Link, ModelCosts, amdahl, bytes_moved, exposed, fit_link, gustafson, serial_share
from ddp_workbook.plots import BLUE, GREEN, GREY, ORANGE, new_figure
from ddp_workbook.scaling import Interval, mean_interval
from ddp_workbook.timings import AnatomyRecord, SurveyRecord, SweepRecord, Timeline

PARTS = {"data": "#E69F00", "forward": "#56B4E9", "backward": BLUE, "optimizer": GREEN}
MODEL_COLOURS = {"resnet50": BLUE, "mlp": ORANGE, "cnn": GREEN}
MODEL_NAMES = {"resnet50": "ResNet-50", "mlp": "MLP", "cnn": "CNN"}


def step_anatomy(record: AnatomyRecord) -> Figure:
    """Median milliseconds of a step's parts with and without averaging; beside them the summed collectives."""
    figure, axes = new_figure(1, 1, 8.5, 2.8)
    ax = axes[0, 0]
    for place, ranks in enumerate((record.alone, record.averaged)):
        left = 0.0
        for part, colour in PARTS.items():
            value = 1000 * float(np.median([getattr(step, part) for rank in ranks for step in rank]))
            ax.barh(place, value, left=left, color=colour, label=part if place == 0 else None)
            left += value
    summed = 1000 * float(np.median([step.collectives for rank in record.averaged for step in rank]))
    ax.barh(2, summed, color=GREY, hatch="///", edgecolor="white", label="collectives, summed")
    found = exposed(record)
    ax.set_title(
        f"{record.recipe}, {record.processes} processes x {record.threads} thread(s), batch {record.config.batch_size} "
        f"each: exposed {1000 * found.value:.2f} ms [{1000 * found.low:.2f}, {1000 * found.high:.2f}]",
        fontsize=9,
    )
    ax.set(yticks=range(3), xlabel="milliseconds (median over steps and ranks)")
    ax.set_yticklabels(["step under no_sync", "step that averages", "collectives, summed"])
    ax.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=5, fontsize=8)
    return figure


def timeline(found: Timeline, title: str) -> Figure:
    """One measured step: what the processor computes, and each bucket from ready to averaged."""
    figure, axes = new_figure(1, 1, 9, 1.7 + 0.28 * len(found.buckets))
    ax = axes[0, 0]
    marks = [1000 * mark for mark in found.marks]
    for (part, colour), begin, end in zip(PARTS.items(), marks[:-1], marks[1:], strict=True):
        ax.barh(0, end - begin, left=begin, color=colour, label=part)
    last = 1000 * found.buckets[-1].ready
    for row, bucket in enumerate(found.buckets, start=1):
        ready, done = 1000 * bucket.ready, 1000 * bucket.done
        hidden = max(min(done, last) - ready, 0)
        look = {"color": "#CC79A7"}
        ax.barh(row, hidden, left=ready, **look, label="all-reduce beside backward" if row == 1 else None)
        exposed_look = {"color": ORANGE, "hatch": "///", "edgecolor": "white"}
        label = "all-reduce after the last gradient" if row == 1 else None
        ax.barh(row, done - ready - hidden, left=ready + hidden, **exposed_look, label=label)
        ax.text(done, row, f"  {_size(bucket.bytes)}", va="center", fontsize=8)
    names = ["rank 0 computes", *(f"bucket {number}" for number in range(1, len(found.buckets) + 1))]
    ax.set(yticks=range(len(names)), yticklabels=names, xlabel="milliseconds since the step began", title=title)
    ax.set_xlim(0, marks[-1] * 1.08)
    ax.axvline(last, color="black", linestyle=":", linewidth=1)
    ax.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=6, fontsize=8)
    return figure


def _size(count: int) -> str:
    """Bytes in a unit that leaves a short number."""
    return f"{count / 2**20:.3g} MiB" if count >= 2**20 else f"{count / 2**10:.3g} KiB"


def all_reduce_fit(sweep: SweepRecord) -> Figure:
    """Measured all-reduces and the fitted line; and what each process sends, against the number of processes."""
    figure, (pair,) = new_figure(1, 2, 10, 3.6)
    times, volume = pair
    link = fit_link(sweep)
    sizes = [sample.bytes for sample in sweep.samples]
    found = [mean_interval(sample.seconds) for sample in sweep.samples]
    values = 1000 * np.array([one.value for one in found])
    reach = [values - [1000 * one.low for one in found], [1000 * one.high for one in found] - values]
    times.errorbar(sizes, values, yerr=reach, fmt="o", color=BLUE, capsize=3, label="measured: mean, 95 % interval")
    line = [1000 * link.all_reduce(size, sweep.processes) for size in sizes]
    label = f"fit: latency {1e6 * link.latency:.0f} us, bandwidth {link.bandwidth / 1e9:.2f} GB/s"
    times.plot(sizes, line, color=ORANGE, label=label)
    times.set(xscale="log", yscale="log", xlabel="gradients averaged", ylabel="milliseconds")
    times.set_xticks(sizes[::2], labels=[_size(size) for size in sizes[::2]])
    times.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    times.minorticks_off()
    times.set_title(f"Averaging among {sweep.processes} processes")
    times.legend(fontsize=8)
    counts = np.arange(1, 17)
    volume.plot(counts, [bytes_moved(1, int(n)) for n in counts], "o-", color=BLUE, markersize=4)
    volume.axhline(2, color=GREY, linestyle="--", linewidth=1)
    volume.set_xticks(range(2, 17, 2))
    volume.set(xlabel="processes N", ylabel="bytes sent by each, per byte averaged", ylim=(0, 2.2))
    volume.set_title("2(N-1)/N: nears 2, never falls")
    return figure


def pay_map(survey: SurveyRecord) -> Figure:
    """Predicted speedup over one process on all cores by batch size and model; measured points on it."""
    figure, axes = new_figure(1, 1, 9, 1.4 + 0.9 * len(survey.models))
    ax = axes[0, 0]
    link = fit_link(survey.sweep)
    batches = np.array(sorted({point.images for point in survey.points})) * survey.processes
    grid = np.geomspace(batches.min() / 2, batches.max() * 2, 80)
    surface = [
        [ModelCosts(survey, model).speedup_here(batch, survey.processes, link) for batch in grid]
        for model in survey.models
    ]
    points = [
        (survey.processes * point.images, row, _measured_speedup(point.serial, point.averaged))
        for row, model in enumerate(survey.models)
        for point in survey.of_model(model)
    ]
    seen = [value for row in surface for value in row] + [value for *_, value in points]
    norm = TwoSlopeNorm(1.0, min(*seen, 0.95), max(*seen, 1.05))
    edges = np.append(grid / (grid[1] / grid[0]) ** 0.5, grid[-1] * (grid[1] / grid[0]) ** 0.5)
    colours = ax.pcolormesh(
        edges, np.arange(len(survey.models) + 1) - 0.5, surface, cmap="PuOr", norm=norm, edgecolors="face"
    )
    for batch, row, value in points:
        ax.scatter(batch, row, s=620, c=[value], cmap="PuOr", norm=norm, edgecolor="black", linewidth=1.2, zorder=3)
        ink = "white" if abs(norm(value) - 0.5) > 0.3 else "black"  # both ends of the colour map are dark
        ax.text(batch, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink, zorder=4)
    names = [MODEL_NAMES[model] for model in survey.models]
    ax.set(xscale="log", xlabel="global batch (images)", yticks=range(len(names)), yticklabels=names)
    ax.set_xticks(batches, labels=[str(batch) for batch in batches])
    ax.minorticks_off()
    ax.grid(False)
    ax.set_title(
        f"{survey.processes} processes over one process on all cores: predicted (field), measured (circles)",
        fontsize=10,
    )
    figure.colorbar(colours, ax=ax, label="speedup (1 = no gain)")
    return figure


def _measured_speedup(serial: Sequence[float], averaged: Sequence[float]) -> float:
    return float(np.mean(serial) / np.mean(averaged))


def predicted_here(survey: SurveyRecord, batch: int, measured: Sequence[tuple[int, Interval]] = ()) -> Figure:
    """Predicted speedup of 1 to 16 processes of this machine that share a batch; `measured` (processes, speedup)."""
    figure, axes = new_figure(1, 1, 7.5, 4)
    ax = axes[0, 0]
    link, counts = fit_link(survey.sweep), list(range(1, 17))
    for model in survey.models:
        costs = ModelCosts(survey, model)
        values = [costs.speedup_here(batch, count, link) for count in counts]
        ax.plot(counts, values, color=MODEL_COLOURS[model], label=f"{MODEL_NAMES[model]}, predicted")
    for number, (processes, speedup) in enumerate(measured):
        reach = [[speedup.value - speedup.low], [speedup.high - speedup.value]]
        label = None if number else "measured, this recipe (95 % interval)"
        ax.errorbar(processes, speedup.value, reach, fmt="D", color="black", capsize=3, label=label)
    ax.axhline(1, color="black", linewidth=0.8)
    ax.set(xlabel="processes on this machine", ylabel="speedup over one process on all cores", ylim=(0, None))
    ax.set_title(f"Global batch of {batch} shared out")
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
    share = serial_share(costs, batch)
    ax.plot(fitting, strong, color=ORANGE, label="strong scaling, predicted")
    ax.plot(counts, weak, color=BLUE, label="weak scaling (batch grows), predicted")
    ax.plot(counts, amdahl(share, counts), color=ORANGE, linestyle=":", label=f"Amdahl, serial share {share:.1%}")
    ax.plot(counts, gustafson(share, counts), color=BLUE, linestyle=":", label="Gustafson, same share")
    ax.plot(counts, counts, color=GREY, linestyle="--", linewidth=1, label="ideal")
    _log_axes(ax, processes, min(strong))
    ax.set_title(title, fontsize=10)
    ax.legend(fontsize=8)
    return figure


def _log_axes(ax: Axes, processes: int, lowest: float) -> None:
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ticks = [2**power for power in range(processes.bit_length())]
    ax.set_xticks(ticks, labels=[str(tick) for tick in ticks])
    below = range(int(np.floor(np.log2(min(lowest, 1.0)))), 0)
    ax.set_yticks([*(2.0**power for power in below), *ticks])
    ax.set_yticklabels([*(f"1/{2**-power}" for power in below), *map(str, ticks)])
    ax.minorticks_off()
    ax.set(xlabel="machines", ylabel="predicted speedup over one machine")
