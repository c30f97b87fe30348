"""Figures of a step and of its all-reduces, in milliseconds; those of the cost model's predictions are imported."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ddp_workbook.analysis import costmodel
from ddp_workbook.analysis.costmodel import fit_link
from ddp_workbook.analysis.plots_predicted import pay_panels as pay_panels
from ddp_workbook.analysis.plots_predicted import predicted_here as predicted_here
from ddp_workbook.analysis.plots_predicted import predicted_on_network as predicted_on_network
from ddp_workbook.analysis.plots_style import (
    GREY,
    INK,
    LIGHT_ORANGE,
    ORANGE,
    PARTS,
    digits,
    error_bars,
    new_figure,
    scaled,
    set_finding,
)
from ddp_workbook.analysis.statistics import mean_interval
from ddp_workbook.analysis.trace import bucket_names, last_to_fill
from ddp_workbook.records.timing import AllReduceBenchmark, Interval, StepBreakdown, StepTimes, Timeline

PAIR = 2.3  # from one pair of steps to the next, in heights of a row
LANE = 0.6  # height of a bucket's row; a rank's own is 1
MOST_INCHES = 7.0  # of the rows of a timeline


def _bar(ax: Axes, y: float, parts: Sequence[float], height: float, left: float = 0.0) -> None:
    """The parts of a step, one after another."""
    for value, colour in zip(parts, PARTS.values(), strict=True):
        ax.barh(y, value, left=left, height=height, color=colour, edgecolor="white", linewidth=0.6)
        left += value


def _part_medians(ranks: Sequence[Sequence[StepTimes]]) -> np.ndarray:
    """Median milliseconds of each part over all steps of all ranks."""
    return np.array([1000 * np.median([getattr(step, part) for rank in ranks for step in rank]) for part in PARTS])


def _ms(value: float) -> str:
    return f"{value:{digits(value)}}\u00a0ms"


def sync_cost(breakdowns: dict[str, StepBreakdown]) -> Figure:
    """By how much gradient synchronization lengthens a step: each record's step without it, and under it the one with.

    The first bar of a pair is as long as the median step under no_sync, the second one longer by the exposed
    communication. Their parts are drawn in the proportions of their medians, which do not add up exactly.
    """
    cases = {label: scaled([costmodel.exposed(record)], 1000)[0] for label, record in breakdowns.items()}
    bases = [1000 * float(np.median(costmodel.slowest(record.no_sync))) for record in breakdowns.values()]
    figure, axes = new_figure(1, 1, height=1.35 + 1.15 * len(cases))
    ax, ticks = axes[0, 0], {}
    longest = max(base + max(each.high, each.value) for base, each in zip(bases, cases.values(), strict=True))
    ax.set_xlim(0, 1.5 * longest)
    for number, ((label, added), base) in enumerate(zip(cases.items(), bases, strict=True)):
        y, record = PAIR * number, breakdowns[label]
        ticks |= {y: "no averaging", y + 1: label}
        ax.vlines(base, y - 0.4, y + 1.4, color=INK, linestyle=":", linewidth=1, zorder=3)
        _step_row(ax, y, _part_medians(record.no_sync), base)
        _step_row(ax, y + 1, _part_medians(record.synced), base + added.value)
        _draw_added(ax, y + 1, base, added)
        if number == 0:  # the shared-memory hook's clocks run until the last bucket is there: their sum says nothing
            _note_sum(ax, y + 1, base + added.high, 1000 * costmodel.summed_collectives(record))
    ax.set_yticks(list(ticks), list(ticks.values()))
    ax.set(
        ylim=(max(ticks) + 0.6, -0.5), xlabel="milliseconds of a training step (median, 95 % interval of what is added)"
    )
    ax.grid(False)
    _part_legend(figure)
    set_finding(figure, _cost_finding(cases, bases))
    return figure


def _step_row(ax: Axes, y: float, medians: np.ndarray, length: float) -> None:
    """A step of this length. Its medians stand on the parts where there is room."""
    drawn = medians * length / medians.sum()
    _bar(ax, y, drawn, height=0.55)
    for median, width, end in zip(medians, drawn, np.cumsum(drawn), strict=True):
        if width > 0.055 * ax.get_xlim()[1]:
            ax.text(end - width / 2, y, f"{median:{digits(median)}}", ha="center", va="center", fontsize=8)


def _draw_added(ax: Axes, y: float, base: float, added: Interval) -> None:
    """An arrow from the step without averaging to the end of this one, and the interval under that end."""
    end, spec = base + added.value, digits(added.value)
    ax.annotate("", (end, y - 0.42), (base, y - 0.42), arrowprops={"arrowstyle": "->", "shrinkA": 0, "shrinkB": 0})
    ax.errorbar(end, y + 0.4, fmt="|", xerr=error_bars([added]), color=INK, capsize=3, linewidth=1.2)
    right = max(base + added.high, end)
    text = f"{added.value:+{spec}} ms [{added.low:z{spec}}, {added.high:z{spec}}]"
    ax.annotate(text, (right, y - 0.12), (7, 0), textcoords="offset points", va="center", weight="bold", fontsize=9)


def _note_sum(ax: Axes, y: float, right: float, summed: float) -> None:
    note = f"all-reduces sum to {_ms(summed)}:\nnot the overhead"
    ax.annotate(note, (right, y + 0.22), (7, 0), textcoords="offset points", va="center", fontsize=7, color=GREY)


def _part_legend(figure: Figure, more: Sequence[Patch] = ()) -> None:
    parts = [Patch(color=colour, label=part) for part, colour in PARTS.items()]
    figure.legend(handles=[*parts, *more], loc="outside lower center", ncols=len(parts) if not more else 3)


def _cost_finding(cases: dict[str, Interval], bases: Sequence[float]) -> str:
    (first, added), *others = cases.items()
    finding = f"Averaging the gradients ({first}) adds {_ms(added.value)} to a step of {_ms(bases[0])}{_doubt(added)}"
    for (label, each), base in zip(others, bases[1:], strict=True):
        finding += f"; with {label} {_ms(each.value)} to one of {_ms(base)}{_doubt(each)}"
    return finding


def _doubt(added: Interval) -> str:
    return " (the interval contains 0)" if added.low <= 0 <= added.high else ""


def timeline(breakdown: StepBreakdown) -> Figure:
    """One measured step on every rank, and each bucket from ready to all-reduced.

    Above, rank 0's median step under no_sync.
    """
    alone = sorted(breakdown.no_sync[0], key=lambda step: step.total)
    median = alone[len(alone) // 2]  # one of the steps: its parts add up
    ranks, first = breakdown.timelines, breakdown.timeline
    block = 1.4 + LANE * len(first.buckets)  # of a rank
    rows = 1 + block * len(ranks)
    figure, axes = new_figure(1, 1, height=1.75 + min(0.26 * rows, MOST_INCHES))
    ax, began = axes[0, 0], 1000 * first.marks[0]
    _bar(ax, 0, [1000 * getattr(median, part) for part in PARTS], height=0.4, left=began)
    names = {0.0: "no averaging (median step)"}
    for rank, step in enumerate(ranks):
        names |= _draw_rank(ax, 1 + block * rank, step, rank)
    ax.set_yticks(list(names), list(names.values()))
    ax.set(ylim=(rows - 0.6, -0.6), xlabel="milliseconds since the first rank began the step")
    longest = max(first.marks[0] + median.total, *(step.marks[-1] for step in ranks))
    ax.set_xlim(0, 1.2 * 1000 * longest)
    _draw_difference(ax, began + 1000 * median.total, 1000 * first.marks[-1])
    ax.grid(False, axis="y")
    _part_legend(figure, [
        Patch(color=LIGHT_ORANGE, label="all-reduce during backward"),
        Patch(color=ORANGE, label="all-reduce after the last gradient"),
    ])  # fmt: skip
    set_finding(figure, _timeline_finding(breakdown, median.total))
    return figure


def _draw_rank(ax: Axes, top: float, step: Timeline, rank: int) -> dict[float, str]:
    """The parts of a rank's step and, below, its buckets; a dotted line where its last gradient was ready.

    Returns the names of the rows.
    """
    marks, last = 1000 * np.array(step.marks), 1000 * step.buckets[-1].ready
    _bar(ax, top, np.diff(marks), height=0.7, left=marks[0])
    lanes = [top + 0.5 + LANE * (number + 0.5) for number in range(len(step.buckets))]
    for row, bucket in zip(lanes, step.buckets, strict=True):
        ready, done = 1000 * bucket.ready, 1000 * bucket.done
        hidden = max(min(done, last) - ready, 0)
        ax.barh(row, hidden, left=ready, height=0.8 * LANE, color=LIGHT_ORANGE)
        ax.barh(row, done - ready - hidden, left=ready + hidden, height=0.8 * LANE, color=ORANGE)
        if rank == 0:  # the same on all ranks
            ax.annotate(_size(bucket.bytes), (done, row), (4, 0), textcoords="offset points", va="center", fontsize=7)
    ax.vlines(last, top - 0.35, lanes[-1] + LANE / 2, color=INK, linestyle=":", linewidth=1)
    return {top: f"rank {rank} computes", **dict(zip(lanes, bucket_names(len(lanes)), strict=True))}


def _draw_difference(ax: Axes, alone: float, synced: float) -> None:
    """An arrow from the end of the step without averaging to the end of the measured one."""
    ax.plot([synced, synced], [0, 0.6], color=INK, linewidth=0.8)
    ax.annotate("", (synced, 0), (alone, 0), arrowprops={"arrowstyle": "->", "shrinkA": 0, "shrinkB": 0})
    text = f"{synced - alone:+{digits(synced - alone)}} ms"
    ax.annotate(
        text, (max(alone, synced), 0), (4, 0), textcoords="offset points", weight="bold", va="center", fontsize=9
    )


def _timeline_finding(breakdown: StepBreakdown, alone: float) -> str:
    """What rank 0's measured step shows beside its step without averaging, of `alone` seconds."""
    step = breakdown.timeline
    ready = step.buckets[-1].ready
    after = max(bucket.done for bucket in step.buckets) - ready
    extra = step.marks[-1] - step.marks[0] - alone
    slowest, filled = last_to_fill(breakdown.timelines, -1)
    tail = f"{_ms(1000 * after)} of the all-reduces come after rank 0's last gradient"
    if filled - ready > after / 2:
        tail += f", {_ms(1000 * (filled - ready))} of it waiting for rank {slowest}"
    if extra <= 0:
        return f"{tail}; this step is no longer than the median step without averaging"
    if after > extra / 2:
        return f"{tail}: this step is {_ms(1000 * extra)} longer than the median step without averaging"
    why = ": backward is slower, the same cores send" if breakdown.environment.device == "cpu" else ""
    return f"Only {tail}, yet this step is {_ms(1000 * extra)} longer{why}"


def _size(count: float) -> str:
    """Bytes in MiB or KiB."""
    return f"{count / 2**20:.3g} MiB" if count >= 2**20 else f"{count / 2**10:.3g} KiB"


def all_reduce_fit(measured: AllReduceBenchmark) -> Figure:
    """Measured all-reduces of many sizes, and the line of the cost model through them."""
    figure, axes = new_figure(1, 1, height=2.9)
    ax, link = axes[0, 0], fit_link(measured)
    sizes = [sample.bytes for sample in measured.samples]
    means = scaled([mean_interval(sample.seconds) for sample in measured.samples], 1000)
    ax.errorbar(
        sizes, [mean.value for mean in means], yerr=error_bars(means), fmt="s", color=ORANGE, capsize=3,
        label="measured: mean, 95 % interval",
    )  # fmt: skip
    line = [1000 * link.all_reduce(size, measured.processes) for size in sizes]
    label = f"fit: fixed cost per message {1e6 * link.latency:.0f} µs, rate {link.bandwidth / 1e9:.2f} GB/s"
    ax.plot(sizes, line, color=INK, linewidth=1.2, label=label)
    ax.set(xscale="log", yscale="log", xlabel="size of what is all-reduced", ylabel="milliseconds")
    ax.set_xticks(sizes[::2], labels=[_size(size) for size in sizes[::2]])
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.minorticks_off()
    ax.legend(loc="upper left")
    equal = link.latency * link.bandwidth * measured.processes  # bytes that take as long as the fixed costs
    finding = f"All-reduce among {measured.processes} processes: the time follows the size"
    if equal > sizes[0]:
        finding = f"All-reduce among {measured.processes} processes: below about {_size(equal)} mostly a fixed cost"
    set_finding(figure, finding)
    return figure
