"""Records to figures. Imports no torch. Colours are Okabe and Ito's, told apart by the colour-blind and in grey."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from ddp_workbook.files import write_whole
from ddp_workbook.record import HistoryRecord, RunRecord
from ddp_workbook.scaling import wilson

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
    "text.parse_math": False,  # class names are the reader's: a dollar sign is no formula
    "svg.fonttype": "path",  # labels as shapes: the same on every machine
    "svg.hashsalt": "ddp-workbook",  # and the same bytes each time
}


def new_figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A grid of axes in the house style, always two-dimensional; sizes in inches."""
    plt.rcParams.update(STYLE)  # for good: rc_context would also reset the notebook's interactive mode
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False)


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure, whole or not at all."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=STYLE["savefig.dpi"], metadata={"Software": None})
    write_whole(path, lambda file: file.write(picture.getvalue()))


def close(figure: Figure) -> None:
    """Let go of a figure that nobody looks at."""
    plt.close(figure)


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes for the same figure."""
    picture = io.BytesIO()
    figure.savefig(picture, format="svg", metadata={"Date": None})
    plt.close(figure)
    return picture.getvalue()


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


def training_curves(histories: Sequence[HistoryRecord]) -> Figure:
    """Loss, accuracy, epoch time and learning rate over the epochs; one colour per run."""
    figure, axes = new_figure(2, 2, 9, 6)
    loss, accuracy, seconds, rate = axes.flat
    for history in histories:
        epochs, colour, marker = history.epochs, COLOURS[history.kind], MARKERS[history.kind]
        x = [e.epoch for e in epochs]
        look = {"color": colour, "marker": marker, "markersize": 4}
        loss.plot(x, [e.train_loss for e in epochs], linestyle="--", label=f"{history.kind}, training", **look)
        loss.plot(x, [e.test_loss for e in epochs], label=f"{history.kind}, test", **look)
        accuracy.plot(x, [100 * e.train_accuracy for e in epochs], linestyle="--", **look)
        accuracy.plot(x, [100 * e.test_accuracy for e in epochs], **look)
        seconds.plot(x, [e.train_seconds for e in epochs], label=f"{history.kind}, training", **look)
        seconds.plot(x, [e.evaluation_seconds for e in epochs], linestyle=":", label=f"{history.kind}, test", **look)
        rate.plot(x, [e.learning_rate for e in epochs], label=history.kind, **look)
    loss.set(title="Loss", ylabel="cross-entropy (nats)", ylim=(0, None))
    accuracy.set(title="Accuracy", ylabel="images classified right (%)")
    seconds.set(title="Time per epoch", ylabel="seconds", ylim=(0, None))
    rate.set(title="Learning rate at the end of the epoch", ylabel="learning rate", ylim=(0, None))
    for ax in axes.flat:
        ax.set_xlabel("epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
    for ax in (loss, seconds):
        ax.legend(fontsize=8)
    return figure


def training_plots(run: RunRecord, history: HistoryRecord) -> Figure:
    """One distributed run by epoch: loss, accuracy, time, and what of the time went into gradients."""
    figure, axes = new_figure(2, 2, 9, 6)
    loss, accuracy, seconds, gradients = axes.flat
    x = [e.epoch for e in history.epochs]
    look = {"marker": "o", "markersize": 4}
    loss.plot(x, [e.train_loss for e in history.epochs], color=BLUE, linestyle="--", label="training", **look)
    loss.plot(x, [e.test_loss for e in history.epochs], color=ORANGE, label="test", **look)
    accuracy.plot(x, [100 * e.train_accuracy for e in history.epochs], color=BLUE, linestyle="--", **look)
    accuracy.plot(x, [100 * e.test_accuracy for e in history.epochs], color=ORANGE, **look)
    seconds.plot(x, [e.train_seconds for e in history.epochs], color=BLUE, label="training", **look)
    seconds.plot(x, [e.evaluation_seconds for e in history.epochs], color=ORANGE, label="test", **look)
    found = [e.communication for e in history.epochs]
    if all(found):
        summed = [one.collective_seconds for one in found]
        waited = [one.waited_seconds for one in found]
        gradients.plot(x, summed, color=GREY, linestyle="--", label="collectives, summed (not the overhead)", **look)
        gradients.plot(x, waited, color=GREEN, label="backward waited after its last bucket", **look)
    loss.set(title="Loss", ylabel="cross-entropy (nats)", ylim=(0, None))
    accuracy.set(title="Accuracy", ylabel="images classified right (%)")
    seconds.set(title="Time per epoch", ylabel="seconds", ylim=(0, None))
    gradients.set(title="Gradient traffic per epoch, mean over ranks", ylabel="seconds", ylim=(0, None))
    for ax in axes.flat:
        ax.set_xlabel("epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
    for ax in (loss, seconds, gradients) if all(found) else (loss, seconds):
        ax.legend(fontsize=8)
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
    """Share of each class that is recognised, with 95 % Wilson intervals."""
    classes = runs[0].dataset.classes
    figure, axes = new_figure(1, 1, 8, min(1.4 + 0.34 * len(classes), 30))
    ax = axes[0, 0]
    places = np.arange(len(classes))
    for offset, run in zip((-0.15, 0.15), runs, strict=False):
        found = [wilson(row[i], sum(row)) for i, row in enumerate(run.confusion)]
        value = np.array([100 * f.value for f in found])
        reach = [value - [100 * f.low for f in found], [100 * f.high for f in found] - value]
        ax.errorbar(
            value, places + offset, xerr=reach, fmt=MARKERS[run.kind], color=COLOURS[run.kind], capsize=3,
            markersize=5, label=f"{run.kind} (all classes: {run.test_accuracy:.2%})",
        )  # fmt: skip
    ax.set(yticks=places, yticklabels=classes, xlabel="images of the class that are recognised (%), 95 % interval")
    ax.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=2, fontsize=9)
    return figure


def baseline_vs_distributed(runs: Sequence[RunRecord], histories: Sequence[HistoryRecord]) -> Figure:
    """Test accuracy over epochs and over training time, and what each run took."""
    figure, axes = new_figure(1, 3, 11, 3.6)
    by_epoch, by_time, totals = axes[0]
    for history in histories:
        accuracy = [100 * e.test_accuracy for e in history.epochs]
        look = {"color": COLOURS[history.kind], "marker": MARKERS[history.kind], "markersize": 4, "label": history.kind}
        by_epoch.plot([e.epoch for e in history.epochs], accuracy, **look)
        by_time.plot(np.cumsum([e.train_seconds for e in history.epochs]) / 60, accuracy, **look)
    by_epoch.set(title="Test accuracy by epoch", xlabel="epoch", ylabel="test images classified right (%)")
    by_epoch.xaxis.get_major_locator().set_params(integer=True)
    by_time.set(
        title="and by training time", xlabel="training time (minutes)", ylabel="test images classified right (%)"
    )
    by_epoch.legend(fontsize=9)
    names = [run.kind for run in runs]
    train = [run.train_seconds / 60 for run in runs]
    test = [run.evaluation_seconds / 60 for run in runs]
    totals.bar(names, train, width=0.55, color=[COLOURS[n] for n in names])
    totals.bar(names, test, width=0.55, bottom=train, color="white", edgecolor=GREY, hatch="///", label="evaluation")
    for place, (a, b) in enumerate(zip(train, test, strict=True)):
        totals.text(place, a + b, f"{a + b:.1f}", ha="center", va="bottom", fontsize=9)
    totals.set(title="Time of the whole run", ylabel="minutes")
    totals.margins(y=0.25)
    totals.legend(fontsize=9, loc="upper left")
    return figure


def sampler_shards(orders: np.ndarray, batch_size: int) -> Figure:
    """Which rank visits which image: `orders` is (epochs, ranks, images per rank), as DistributedSampler gives them."""
    epochs, ranks, each = orders.shape
    figure, axes = new_figure(epochs, 1, 9, 1.1 + 0.9 * epochs)
    palette = [BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9"]
    for epoch, ax in enumerate(axes[:, 0]):
        for rank in range(ranks):
            for place, image in enumerate(orders[epoch, rank]):
                ax.text(place, rank, int(image), ha="center", va="center", fontsize=9, color="white", weight="bold",
                        bbox={"boxstyle": "square,pad=0.28", "facecolor": palette[rank % len(palette)],
                              "edgecolor": "none"})  # fmt: skip
        for edge in range(batch_size, each, batch_size):
            ax.axvline(edge - 0.5, color=GREY, linestyle=":")
        ax.set(xlim=(-0.7, each - 0.3), ylim=(ranks - 0.45, -0.55), yticks=range(ranks), xticks=range(each))
        ax.set(yticklabels=[f"rank {r}" for r in range(ranks)], title=f"epoch {epoch + 1}: index of each rank's images")
        ax.grid(False)
    axes[-1, 0].set_xlabel(f"position in the rank's epoch (dotted: a batch of {batch_size} ends)")
    return figure
