"""Figures of what the cost model predicts: for this machine next to what was measured, and for a network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ddp_workbook.analysis import costmodel
from ddp_workbook.analysis.clusters import Cluster, node_size_of, unit_of, whole_nodes
from ddp_workbook.analysis.costmodel import (
    FEWEST_IMAGES,
    SETTLED_WIDTH,
    Link,
    ModelCosts,
    exposed,
    fit_link,
    is_settled,
    measured_speedup,
)
from ddp_workbook.analysis.plots_style import GREY, INK, ORANGE, error_bars, new_figure, percent, set_finding
from ddp_workbook.analysis.speedup import over_all_cores
from ddp_workbook.records.timing import BatchSweep, BenchmarkRecord, Interval, StepBreakdown
from ddp_workbook.specs import DATASETS, MODELS

FARTHEST = 4  # times the largest measured batch: so far the model's line is drawn
MEASURED, UNSETTLED = {"fmt": "s"}, {"fmt": "s", "markerfacecolor": "white"}


def pay_panels(
    sweep: BatchSweep, recipe_model: str, shared: StepBreakdown | None = None, weak: BenchmarkRecord | None = None
) -> Figure:
    """Speedup over one process on all cores by global batch, a panel per network: the model's line, measured points.

    The line is dashed beyond the largest measured batch; points that are not settled are hollow. For the recipe's own
    network also through shared memory: predicted with the exposed communication of `shared`, measured in `weak`.
    """
    models = sorted(sweep.models, key=lambda model: model != recipe_model)
    figure, (axes,) = new_figure(1, len(models), height=3.3, sharey=True)
    tops = [1.0]
    for ax, model in zip(axes, models, strict=True):
        points = sweep.of_model(model)
        batches = np.array([sweep.processes * point.images for point in points])
        own = model == recipe_model
        curves = _predict(sweep, model, np.geomspace(batches[0], FARTHEST * batches[-1], 121), shared if own else None)
        for name, (grid, values) in curves.items():
            width = 1.5 if name == "all-reduce" else 3
            inside = grid <= 1.001 * batches[-1]
            style = {"color": MODELS[model].colour, "linewidth": width, "alpha": 1 if width < 2 else 0.4}
            ax.plot(grid[inside], values[inside], **style)
            ax.plot(grid[~inside], values[~inside], linestyle="--", **style)
            tops.append(values.max())
        for batch, point in zip(batches, points, strict=True):
            speedup, settled = measured_speedup(point), is_settled(point)
            _draw_measured(ax, batch, speedup, **(MEASURED if settled else UNSETTLED))
            tops += [speedup.high] if settled else []
        if own and weak is not None:
            run, (_, speedup) = weak.by_role("distributed")[0], over_all_cores(weak)[0]
            _draw_measured(ax, run.global_batch, speedup, fmt="D")
            tops.append(speedup.high)
        if own:
            set_finding(figure, _pay_finding(sweep.processes, model, curves))
        _batch_axis(ax, batches, MODELS[model].label)
    axes[0].set(ylabel="speedup over one process\non all cores", ylim=(0, 1.1 * max(tops)))
    _mark_outside(axes, sweep, models)
    _pay_legend(figure, shared is not None, weak is not None)
    return figure


def _predict(
    sweep: BatchSweep, model: str, grid: np.ndarray, shared: StepBreakdown | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The predicted curves by name: (global batches, speedups)."""
    costs, link = ModelCosts(sweep, model), fit_link(sweep.all_reduce)
    curves = {"all-reduce": (grid, np.array([costs.speedup_here(batch, sweep.processes, link) for batch in grid]))}
    if shared is not None:
        added = exposed(shared).value
        steps = np.array([costs.rank.seconds(batch / sweep.processes) + added for batch in grid])
        curves["shared memory"] = (grid, np.array([costs.serial.seconds(batch) for batch in grid]) / steps)
    return curves


def _draw_measured(ax: Axes, x: float, speedup: Interval, **style: object) -> None:
    ax.errorbar(x, speedup.value, error_bars([speedup]), color=ORANGE, capsize=3, markersize=5, zorder=4, **style)


def _batch_axis(ax: Axes, batches: np.ndarray, title: str) -> None:
    ticks = [*batches, 2 * batches[-1], FARTHEST * batches[-1]]
    ax.axhline(1, color=INK, linewidth=0.8)
    ax.set(xscale="log", xlabel="global batch (log)", title=title)
    ax.set_xticks(ticks[-6:], labels=[str(tick) for tick in ticks[-6:]])
    ax.minorticks_off()


def _mark_outside(axes: Sequence[Axes], sweep: BatchSweep, models: Sequence[str]) -> None:
    """An arrow with its number for a point above the panel: one that is not settled does not stretch the scale."""
    top = axes[0].get_ylim()[1]
    for ax, model in zip(axes, models, strict=True):
        for point in sweep.of_model(model):
            value = measured_speedup(point).value
            if value > top:
                ax.annotate(f"↑ {value:.1f}", (sweep.processes * point.images, top), (5, 0), va="top", fontsize=8,
                            textcoords="offset points")  # fmt: skip


def _pay_legend(figure: Figure, shared: bool, weak: bool) -> None:
    style = {"color": ORANGE, "linestyle": "none"}
    handles = [
        Line2D([], [], color=INK, label="model"),
        Line2D([], [], color=INK, linestyle="--", label="model, beyond what was measured"),
        Line2D([], [], marker="s", label="measured", **style),
        Line2D([], [], marker="s", markerfacecolor="white", label="measured, not settled", **style),
    ]
    if shared:
        handles.append(Line2D([], [], color=INK, alpha=0.4, linewidth=3, label="model, through shared memory"))
    if weak:
        handles.append(Line2D([], [], marker="D", label="measured, a whole batch each (baseline: one batch)", **style))
    figure.legend(handles=handles, loc="outside lower center", ncols=2)


def _pay_finding(processes: int, model: str, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """From which global batch on the processes gain, by the model."""
    gains = {name: _first_gain(*curve) for name, curve in curves.items()}
    last, first = curves["all-reduce"][0][-1], gains["all-reduce"]
    finding = f"Predicted for {MODELS[model].label} on {processes} processes: "
    finding += (
        f"no gain up to a global batch of {last:.0f}" if first is None else f"a gain from a global batch of {first}"
    )
    if "shared memory" in gains:
        shared = gains["shared memory"]
        finding += f"; through shared memory {f'from {shared}' if shared else 'none'}"
    return f"{finding} (dashed: not measured)"


def _first_gain(grid: np.ndarray, values: np.ndarray) -> str | None:
    """The first global batch with a speedup above 1, in words."""
    gains = np.flatnonzero(values > 1)
    if len(gains) == 0:
        return None
    return f"about {float(f'{grid[gains[0]]:.2g}'):.0f}" if gains[0] else f"{grid[0]:.0f} or less"


def predicted_here(sweep: BatchSweep, model: str, batch: int, measured: Sequence[tuple[int, Interval]] = ()) -> Figure:
    """Predicted speedup of one network on this machine, to twice its cores; `measured`: (processes, speedup).

    Of several measurements of one process count the first is drawn.
    """
    costs, link = ModelCosts(sweep, model), fit_link(sweep.all_reduce)
    points = dict(reversed(list(measured)))
    most = min(max(2 * costs.cores, *points, 2), batch)
    counts = list(range(1, most + 1))
    values = [costs.speedup_here(batch, count, link) for count in counts]
    figure, axes = new_figure(1, 1, height=3)
    ax = axes[0, 0]
    ax.plot(counts, values, ".-", color=MODELS[model].colour, label=f"predicted, {MODELS[model].label}")
    for number, (count, speedup) in enumerate(sorted(points.items())):
        label = None if number else "measured, with its interval"
        _draw_measured(ax, count, speedup, fmt="D", label=label)
    if most > costs.cores:
        ax.axvspan(costs.cores + 0.5, most + 0.5, color=GREY, alpha=0.12, linewidth=0)
        ax.text(most + 0.4, 0.02, "oversubscribed", transform=ax.get_xaxis_transform(), fontsize=8, ha="right")
    ax.axhline(1, color=INK, linewidth=0.8)
    ax.set(xlabel="processes on this machine", ylabel="speedup over one process\non all cores")
    ax.set(xlim=(0.5, most + 0.5), ylim=(0, None), xticks=counts[:: -(-most // 16)])
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    verdicts: dict[str, list[str]] = {}
    for count in sorted(points):
        verdicts.setdefault(_verdict(values[count - 1], points[count]), []).append(str(count))
    words = ", ".join(f"{verdict} at {' and '.join(at)} processes" for verdict, at in verdicts.items())
    set_finding(figure, f"Global batch of {batch}: the prediction is {words or 'not compared with a measurement'}")
    return figure


def _verdict(predicted: float, measured: Interval) -> str:
    if measured.low <= predicted <= measured.high:
        wide = measured.high - measured.low > SETTLED_WIDTH * measured.value
        return f"within the measured interval{', which is too wide to test it,' if wide else ''}"
    size = percent(abs(predicted / measured.value - 1), ".0f")
    return f"too {'low' if predicted < measured.value else 'high'} by {size}"


def predicted_on_network(costs: ModelCosts, batch: int, network: Link | Cluster, processes: int, title: str) -> Figure:
    """Predicted speedup on a network of machines like this one, over one of them with one batch; and Amdahl's curve.

    Strong scaling splits the batch, down to FEWEST_IMAGES a machine; weak scaling gives every machine a whole one, as
    far as the training images go. The axis ends where both do.
    """
    figure, axes = new_figure(1, 1, height=3.9)
    ax = axes[0, 0]
    most_split, most_whole = _most_machines(costs, batch, processes)
    processes = min(processes, max(most_split, most_whole))
    processes -= processes % min(processes, node_size_of(network))
    counts = np.array(whole_nodes(np.geomspace(1, processes, 40).round().astype(int), network))
    split, whole = counts[counts <= most_split], counts[counts <= most_whole]
    strong = np.array([costs.speedup_on_network(batch, int(count), network) for count in split])
    weak = np.array([costs.weak_speedup_on_network(batch, int(count), network) for count in whole])
    share = costmodel.serial_share(costs, batch)
    amdahl = costmodel.amdahl(share, split)
    ax.plot(split, strong, color=ORANGE)
    ax.plot(whole, weak, color=ORANGE, linestyle="--")
    ax.plot(split, amdahl, color=GREY, linestyle=":")
    ax.plot(counts, counts, color=GREY, linewidth=1)
    _machine_axis(ax, processes, strong.min(), unit_of(network))
    if split[-1] < processes:
        ax.axvspan(split[-1], processes, color=GREY, alpha=0.1, linewidth=0)
        ax.text(processes, ax.get_ylim()[0], f"split batch: fewer than {FEWEST_IMAGES} images each ", fontsize=8,
                ha="right", va="bottom")  # fmt: skip
    _label_ends(ax, processes, {
        "ideal": counts[-1], "predicted, a whole batch each (weak)": weak[-1],
        f"Amdahl, serial share {percent(share)}": amdahl[-1], "predicted, batch split (strong)": strong[-1],
    })  # fmt: skip
    ends = f"{strong[-1]:.2g} when {split[-1]} {unit_of(network)} split the batch, "
    ends += f"{weak[-1]:.2g} when {whole[-1]} have a whole batch each"
    title = title if title.lower().startswith("predicted") else f"Predicted: {title}"
    set_finding(figure, f"{title[0].upper()}{title[1:]}. Speedup {ends}")
    return figure


def _most_machines(costs: ModelCosts, batch: int, processes: int) -> tuple[int, int]:
    """How many machines at most can split the batch, and how many can have a whole one of the training images each."""
    images = DATASETS[costs.sweep.dataset].images  # None: the user's own
    return max(batch // FEWEST_IMAGES, 1), processes if images is None else max(images[0] // batch, 1)


def _machine_axis(ax: Axes, processes: int, lowest: float, unit: str) -> None:
    """Powers of two on both axes."""
    ticks = [2**power for power in range(processes.bit_length())]
    below = range(int(np.floor(np.log2(min(lowest, 1.0)))), 0)
    ax.set(xscale="log", yscale="log", xlabel=unit, ylabel="predicted speedup over one machine")
    ax.set_xticks(ticks, labels=[str(tick) for tick in ticks])
    ax.set_yticks([*(2.0**power for power in below), *ticks])
    ax.set_yticklabels([*(f"1/{2**-power}" for power in below), *map(str, ticks)])
    ax.minorticks_off()
    ax.set_xlim(0.95, max(processes, 2))


def _label_ends(ax: Axes, x: float, ends: dict[str, float]) -> None:
    """Each line's name right of its end; names that would overlap are moved apart."""
    low, high = np.log(ax.get_ylim())
    heights: list[float] = []
    for name, value in sorted(ends.items(), key=lambda end: end[1]):
        height = (np.log(value) - low) / (high - low)
        heights.append(max(height, heights[-1] + 0.055) if heights else max(height, 0))
        ax.text(1.01, heights[-1], name, transform=ax.transAxes, fontsize=8, va="center")
