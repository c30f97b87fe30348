"""Figures of training runs, and the style of all figures: Okabe and Ito's colours, safe for the colour-blind."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddp_workbook.analysis.statistics import wilson
from ddp_workbook.records.files import write_atomically
from ddp_workbook.records.run import EpochRecord, HistoryRecord, RunRecord
from ddp_workbook.records.timing import Interval

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#595959"
COLOURS = {"baseline": BLUE, "distributed": ORANGE}
MARKERS = {"baseline": "o", "distributed": "s"}

STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "text.parse_math": False,  # in the reader's class names a dollar sign is no formula
    "svg.fonttype": "path",  # letters as shapes: the same on every machine
    "svg.hashsalt": "ddp-workbook",  # the same bytes each time
}


def new_figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure with a grid of axes (rows, columns) in the style of the workbook; sizes in inches."""
    plt.rcParams.update(STYLE)  # not rc_context: it would also reset the notebook's interactive mode
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False)


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure atomically."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=STYLE["savefig.dpi"], metadata={"Software": None})
    write_atomically(path, lambda file: file.write(picture.getvalue()))


def write_png(figure: Figure, path: Path) -> None:
    """Write a figure that nobody looks at on the screen, and close it."""
    save_png(figure, path)
    plt.close(figure)


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes for the same figure; closes it."""
    picture = io.BytesIO()
    figure.savefig(picture, format="svg", metadata={"Date": None})
    plt.close(figure)
    return picture.getvalue()


def error_bars(intervals: Sequence[Interval]) -> list[list[float]]:
    """Lengths below and above the values, as matplotlib's errorbar() takes them."""
    return [[i.value - i.low for i in intervals], [i.high - i.value for i in intervals]]


def scaled(intervals: Sequence[Interval], factor: float) -> list[Interval]:
    """The intervals in another unit."""
    return [Interval(factor * i.value, factor * i.low, factor * i.high) for i in intervals]


def image_row(images: np.ndarray, titles: Sequence[str], columns: int | None = None) -> Figure:
    """Images (n, size, size, 3) as bytes, each under its title; 12 to a row unless `columns` says otherwise."""
    columns = columns or min(len(images), 12)
    rows = -(-len(images) // columns)
    figure, axes = new_figure(rows, columns, 0.95 * columns, 1.25 * rows)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, title in zip(axes.flat, images, titles, strict=False):
        ax.imshow(image, interpolation="nearest", cmap="gray")
        ax.set_title(title, fontsize=8)
    return figure


def schedule(rates: Sequence[float], steps_per_epoch: int) -> Figure:
    """Learning rate of every optimizer step of a run."""
    figure, axes = new_figure(1, 1, 7, 2.6)
    ax = axes[0, 0]
    ax.plot(np.arange(1, len(rates) + 1) / steps_per_epoch, rates, color=BLUE)
    ax.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    return figure


def _label_panels(loss: Axes, accuracy: Axes, seconds: Axes, fourth: Axes) -> None:
    loss.set(title="Loss", ylabel="cross-entropy (nats)", ylim=(0, None))
    accuracy.set(title="Accuracy", ylabel="correct predictions (%)")
    seconds.set(title="Time per epoch", ylabel="seconds", ylim=(0, None))
    fourth.set_ylim(0, None)
    for ax in (loss, accuracy, seconds, fourth):
        ax.set_xlabel("epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8)


def _values(epochs: Sequence[EpochRecord], name: str, scale: float = 1) -> list[float]:
    return [scale * getattr(epoch, name) for epoch in epochs]


def training_curves(histories: Sequence[HistoryRecord]) -> Figure:
    """Loss, accuracy, epoch time and learning rate over the epochs; one colour per run."""
    figure, axes = new_figure(2, 2, 9, 6)
    loss, accuracy, seconds, rate = axes.flat
    for history in histories:
        epochs, name = history.epochs, history.kind
        x = _values(epochs, "epoch")
        style = {"color": COLOURS[name], "marker": MARKERS[name], "markersize": 4}
        loss.plot(x, _values(epochs, "train_loss"), linestyle="--", label=f"{name}, training", **style)
        loss.plot(x, _values(epochs, "test_loss"), label=f"{name}, test", **style)
        accuracy.plot(x, _values(epochs, "train_accuracy", 100), linestyle="--", **style)
        accuracy.plot(x, _values(epochs, "test_accuracy", 100), **style)
        seconds.plot(x, _values(epochs, "train_seconds"), label=f"{name}, training", **style)
        seconds.plot(x, _values(epochs, "evaluation_seconds"), linestyle=":", label=f"{name}, test", **style)
        rate.plot(x, _values(epochs, "learning_rate"), label=None, **style)
    rate.set(title="Learning rate at the end of the epoch", ylabel="learning rate")
    _label_panels(loss, accuracy, seconds, rate)
    return figure


def training_plots(run: RunRecord, history: HistoryRecord) -> Figure:
    """One distributed run by epoch: loss, accuracy, time, and how much of the time went into gradients."""
    figure, axes = new_figure(2, 2, 9, 6)
    loss, accuracy, seconds, gradients = axes.flat
    epochs = history.epochs
    x = _values(epochs, "epoch")
    style = {"marker": "o", "markersize": 4}
    train, test = style | {"color": BLUE, "label": "training"}, style | {"color": ORANGE, "label": "test"}
    loss.plot(x, _values(epochs, "train_loss"), linestyle="--", **train)
    loss.plot(x, _values(epochs, "test_loss"), **test)
    accuracy.plot(x, _values(epochs, "train_accuracy", 100), linestyle="--", **train)
    accuracy.plot(x, _values(epochs, "test_accuracy", 100), **test)
    seconds.plot(x, _values(epochs, "train_seconds"), **train)
    seconds.plot(x, _values(epochs, "evaluation_seconds"), **test)
    communication = [epoch.communication for epoch in epochs]
    if all(communication):
        summed = [each.collective_seconds for each in communication]
        waited = [each.waited_seconds for each in communication]
        gradients.plot(x, summed, color=GREY, linestyle="--", label="collectives, summed (not the overhead)", **style)
        gradients.plot(x, waited, color=GREEN, label="backward waited after its last bucket", **style)
    gradients.set(title="Gradient communication per epoch, mean over ranks", ylabel="seconds")
    _label_panels(loss, accuracy, seconds, gradients)
    figure.suptitle(
        f"{run.recipe}, {run.world.processes} processes, global batch {run.world.global_batch}", fontsize=11
    )
    return figure


def confusion_matrices(runs: Sequence[RunRecord]) -> Figure:
    """Counts (left) and shares of the true class (right), a row per run."""
    classes = runs[0].dataset.classes
    size = min(max(4.6, 0.46 * len(classes)), 14)
    figure, axes = new_figure(len(runs), 2, 2.15 * size, len(runs) * size * 0.92)
    small = {"size": 7 if len(classes) <= 12 else 5}
    for (left, right), run in zip(axes, runs, strict=True):
        counts = np.array(run.confusion)
        shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        for ax, values, form, unit in ((left, counts, "d", "images"), (right, shares, ".0f", "% of the true class")):
            sns.heatmap(
                values, ax=ax, annot=len(classes) <= 25, fmt=form, annot_kws=small, cmap="cividis", square=True,
                xticklabels=classes, yticklabels=classes, cbar_kws={"label": unit, "shrink": 0.75},
            )  # fmt: skip
            ax.grid(False)
            ax.set(xlabel="predicted class", ylabel="true class", title=f"{run.kind} ({unit})")
            ax.tick_params(axis="x", rotation=90 if max(map(len, classes)) > 2 else 0, labelsize=8)
            ax.tick_params(axis="y", rotation=0, labelsize=8)
    return figure


def per_class_accuracy(runs: Sequence[RunRecord]) -> Figure:
    """Share of each class that is recognized, with 95 % Wilson intervals."""
    classes = runs[0].dataset.classes
    figure, axes = new_figure(1, 1, 8, min(1.4 + 0.34 * len(classes), 30))
    ax = axes[0, 0]
    rows = np.arange(len(classes))
    for offset, run in zip((-0.15, 0.15), runs, strict=False):
        shares = scaled([wilson(row[i], sum(row)) for i, row in enumerate(run.confusion)], 100)
        ax.errorbar(
            [share.value for share in shares], rows + offset, xerr=error_bars(shares), fmt=MARKERS[run.kind],
            color=COLOURS[run.kind], capsize=3, markersize=5,
            label=f"{run.kind} (all classes: {run.test_accuracy:.2%})",
        )  # fmt: skip
    ax.set(yticks=rows, yticklabels=classes, xlabel="images of the class that are recognized (%), 95 % interval")
    ax.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=2, fontsize=9)
    return figure


def baseline_vs_distributed(runs: Sequence[RunRecord], histories: Sequence[HistoryRecord]) -> Figure:
    """Test accuracy over epochs and over training time, and what each run took."""
    figure, axes = new_figure(1, 3, 11, 3.6)
    by_epoch, by_time, totals = axes[0]
    for history in histories:
        accuracy = [100 * e.test_accuracy for e in history.epochs]
        style = {
            "color": COLOURS[history.kind],
            "marker": MARKERS[history.kind],
            "markersize": 4,
            "label": history.kind,
        }
        by_epoch.plot([e.epoch for e in history.epochs], accuracy, **style)
        by_time.plot(np.cumsum([e.train_seconds for e in history.epochs]) / 60, accuracy, **style)
    by_epoch.set(title="Test accuracy by epoch", xlabel="epoch", ylabel="correct predictions on test images (%)")
    by_epoch.xaxis.get_major_locator().set_params(integer=True)
    by_time.set(
        title="and by training time", xlabel="training time (minutes)", ylabel="correct predictions on test images (%)"
    )
    by_epoch.legend(fontsize=9)
    names = [run.kind for run in runs]
    train = [run.train_seconds / 60 for run in runs]
    test = [run.evaluation_seconds / 60 for run in runs]
    totals.bar(names, train, width=0.55, color=[COLOURS[n] for n in names])
    totals.bar(names, test, width=0.55, bottom=train, color="white", edgecolor=GREY, hatch="///", label="evaluation")
    for x, (a, b) in enumerate(zip(train, test, strict=True)):
        totals.text(x, a + b, f"{a + b:.1f}", ha="center", va="bottom", fontsize=9)
    totals.set(title="Time of the whole run", ylabel="minutes")
    totals.margins(y=0.25)
    totals.legend(fontsize=9, loc="upper left")
    return figure


def sampler_shards(orders: np.ndarray, batch_size: int) -> Figure:
    """Which rank visits which image: `orders` is (epochs, ranks, images per rank), as from DistributedSampler."""
    epochs, ranks, each = orders.shape
    figure, axes = new_figure(epochs, 1, 9, 1.1 + 0.9 * epochs)
    palette = [BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9"]
    for epoch, ax in enumerate(axes[:, 0]):
        for rank in range(ranks):
            for position, image in enumerate(orders[epoch, rank]):
                ax.text(position, rank, int(image), ha="center", va="center", fontsize=9, color="white", weight="bold",
                        bbox={"boxstyle": "square,pad=0.28", "facecolor": palette[rank % len(palette)],
                              "edgecolor": "none"})  # fmt: skip
        for edge in range(batch_size, each, batch_size):
            ax.axvline(edge - 0.5, color=GREY, linestyle=":")
        ax.set(xlim=(-0.7, each - 0.3), ylim=(ranks - 0.45, -0.55), yticks=range(ranks), xticks=range(each))
        ax.set(
            yticklabels=[f"rank {r}" for r in range(ranks)], title=f"epoch {epoch + 1}: indices of each rank's images"
        )
        ax.grid(False)
    axes[-1, 0].set_xlabel(f"position in the rank's epoch (dotted: a batch of {batch_size} ends)")
    return figure
