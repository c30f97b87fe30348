"""Figures of training runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddp_workbook.analysis.plots_style import BLUE as BLUE
from ddp_workbook.analysis.plots_style import (
    COLOURS,
    GREY,
    INK,
    MARKERS,
    RANKS,
    WIDTH,
    error_bars,
    new_figure,
    percent,
    scaled,
    set_finding,
    shorten,
    text_colour,
)
from ddp_workbook.analysis.plots_style import save_png as save_png
from ddp_workbook.analysis.plots_style import to_svg as to_svg
from ddp_workbook.analysis.plots_style import write_png as write_png
from ddp_workbook.analysis.statistics import wilson
from ddp_workbook.records.run import EpochRecord, HistoryRecord, RunRecord

MOST_CLASSES_WITH_NUMBERS, MOST_CLASSES_SHOWN = 10, 30
LONGEST_LABEL = 14  # of a class at a matrix


def image_row(images: np.ndarray, titles: Sequence[str], columns: int | None = None) -> Figure:
    """Images (n, size, size, 3) as bytes, each under its title; at most 8 to a row unless `columns` says otherwise."""
    columns = columns or -(-len(images) // -(-len(images) // 8))
    rows, size = -(-len(images) // columns), min(WIDTH / columns, 0.95)
    figure, axes = new_figure(rows, columns, size * columns, (size + 0.25) * rows)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, title in zip(axes.flat, images, titles, strict=False):
        ax.imshow(image, interpolation="nearest", cmap="gray")
        ax.set_title(shorten(title, int(13 * size)), fontsize=8)
    return figure


def schedule(rates: Sequence[float], steps_per_epoch: int) -> Figure:
    """Learning rate of every optimizer step of a run."""
    figure, axes = new_figure(1, 1, height=2.2)
    ax, epochs = axes[0, 0], np.arange(1, len(rates) + 1) / steps_per_epoch
    ax.plot(epochs, rates, color=INK)
    ax.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    highest = int(np.argmax(rates))
    set_finding(figure, f"The learning rate is highest, {rates[highest]:.3g}, at epoch {epochs[highest]:.1f}")
    return figure


def _values(epochs: Sequence[EpochRecord], name: str, scale: float = 1) -> list[float]:
    return [scale * getattr(epoch, name) for epoch in epochs]


def _draw_epochs(axes: Sequence[Axes], history: HistoryRecord) -> None:
    """Loss, accuracy and time of each epoch on three axes: training dashed, test solid."""
    epochs, name = history.epochs, history.kind
    x = _values(epochs, "epoch")
    for ax, (train, test), scale in zip(
        axes,
        (("train_loss", "test_loss"), ("train_accuracy", "test_accuracy"), ("train_seconds", "evaluation_seconds")),
        (1, 100, 1),
        strict=True,
    ):
        style = {"color": COLOURS[name], "marker": MARKERS[name]}
        ax.plot(x, _values(epochs, train, scale), "--", label=f"{name}, training", **style)
        ax.plot(x, _values(epochs, test, scale), "-", label=f"{name}, test", **style)


def _label_epochs(axes: Sequence[Axes]) -> None:
    loss, accuracy, seconds = axes
    loss.set(ylabel="cross-entropy (nats)", title="Loss", ylim=(0, None))
    accuracy.set(ylabel="correct predictions (%)", title="Accuracy")
    seconds.set(ylabel="seconds per epoch", title="Time", ylim=(0, None))
    for ax in axes:
        _epoch_axis(ax)


def _epoch_axis(ax: Axes) -> None:
    ax.set_xlabel("epoch")
    ax.xaxis.get_major_locator().set_params(integer=True)


def training_curves(histories: Sequence[HistoryRecord]) -> Figure:
    """Loss, accuracy and time of each epoch; one colour per run."""
    figure, (axes,) = new_figure(1, 3, height=2.9)
    for history in histories:
        _draw_epochs(axes, history)
    _label_epochs(axes)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    ends = ", ".join(f"{each.kind} {percent(each.epochs[-1].test_accuracy)}" for each in histories)
    set_finding(figure, f"Test accuracy after {len(histories[0].epochs)} epochs: {ends}")
    return figure


def training_plots(run: RunRecord, history: HistoryRecord) -> Figure:
    """One run by epoch: loss, accuracy, time, and how much of the time backward waited for gradients."""
    figure, (axes,) = new_figure(1, 3, height=2.9)
    _draw_epochs(axes, history)
    communication = [epoch.communication for epoch in history.epochs]
    finding = f"{run.recipe}: test accuracy {percent(run.test_accuracy)} after {len(history.epochs)} epochs"
    if all(communication):
        waited = [each.waited_seconds for each in communication]
        label = "waited after the last bucket (a part of the cost)"
        axes[2].plot(
            _values(history.epochs, "epoch"), waited, ":", color=INK, marker="v", markerfacecolor="white", label=label
        )
    _label_epochs(axes)
    figure.legend(*axes[2].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    set_finding(figure, finding)
    return figure


def baseline_vs_distributed(runs: Sequence[RunRecord], histories: Sequence[HistoryRecord]) -> Figure:
    """Test accuracy by epoch and by training time, with Wilson intervals."""
    figure, (pair,) = new_figure(1, 2, height=2.9, sharey=True)
    by_epoch, by_time = pair
    size, unit = (60, "min") if max(run.train_seconds for run in runs) > 120 else (1, "s")
    for run, history in zip(runs, histories, strict=True):
        n = run.dataset.test_images
        accuracy = scaled([wilson(round(n * epoch.test_accuracy), n) for epoch in history.epochs], 100)
        spent = np.cumsum(_values(history.epochs, "train_seconds")) / size
        for ax, x in ((by_epoch, _values(history.epochs, "epoch")), (by_time, spent)):
            ax.errorbar(
                x, [each.value for each in accuracy], yerr=error_bars(accuracy), color=COLOURS[run.kind],
                marker=MARKERS[run.kind], capsize=2, linewidth=1.2, label=f"{run.kind} (95 % interval)",
            )  # fmt: skip
    by_epoch.set(title="By epoch", ylabel="test images recognized (%)")
    _epoch_axis(by_epoch)
    by_time.set(title="By training time", xlabel=f"training time ({unit})", xlim=(0, None))
    figure.legend(*by_epoch.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    ends = [f"{run.kind} {percent(run.test_accuracy)} in {run.train_seconds / size:.1f}\u00a0{unit}" for run in runs]
    set_finding(figure, f"After {len(histories[0].epochs)} epochs: {', '.join(ends)}")
    return figure


def confusion_matrices(runs: Sequence[RunRecord]) -> Figure:
    """Counts of the distributed run; its errors in percent of the true class; and its counts minus the baseline's.

    Correct predictions have no colour in the first two: next to them no error could be seen.
    """
    by_kind = {run.kind: run for run in runs}
    run = by_kind["distributed"]
    classes, counts = run.dataset.classes, np.array(run.confusion)
    wrong = np.where(np.eye(len(classes), dtype=bool), 0, counts)
    errors = 100 * wrong / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    change = counts - np.array(by_kind["baseline"].confusion)
    few = len(classes) <= MOST_CLASSES_WITH_NUMBERS
    labels = 0.06 * min(max(map(len, classes)), LONGEST_LABEL)  # inches
    height = max(0.19 * len(classes), 1.2) + 1.1 if few else 3.5
    figure, (axes,) = new_figure(1, 3, height=height + labels, sharey=True, width_ratios=(1.25, 1, 1))
    reach = max(int(np.abs(change).max()), 1)
    _draw_matrix(axes[0], wrong, classes, "distributed run\n(images)", counts.diagonal(), cmap="Greys")
    _draw_matrix(axes[1], errors, classes, "its errors\n(% of the true class)", cmap="Greys")
    title = "minus the baseline\n(images)"
    _draw_matrix(axes[2], change, classes, title, cmap="PuOr_r", vmin=-reach, vmax=reach)
    axes[0].set_ylabel("true class")
    set_finding(figure, _error_finding(classes, wrong, errors))
    return figure


def _error_finding(classes: Sequence[str], wrong: np.ndarray, errors: np.ndarray) -> str:
    if wrong.max() == 0:
        return "Distributed run: every image is classified correctly"
    if wrong.max() == 1:
        return f"Distributed run: {wrong.sum()} errors, no confusion occurs twice"
    true, predicted = (shorten(classes[i], 20) for i in np.unravel_index(np.argmax(errors), errors.shape))
    share = percent(errors.max() / 100)
    return f"Most frequent error of the distributed run: {share} of the class “{true}” are taken for “{predicted}”"


def _draw_matrix(
    ax: Axes, values: np.ndarray, classes: Sequence[str], title: str, diagonal: Sequence[int] = (), **options: object
) -> None:
    """A matrix with its numbers in the cells, zeros left empty; for many classes with a colour bar instead.

    `diagonal`: numbers for the diagonal, where the values have none.
    """
    few = len(classes) <= MOST_CLASSES_WITH_NUMBERS
    numbers = np.array([[f"{value:.0f}" if round(value) else "" for value in row] for row in values])
    bar = {"location": "bottom", "shrink": 0.9, "pad": 0.02}
    sns.heatmap(
        values, ax=ax, annot=numbers if few else False, fmt="", annot_kws={"size": 7}, cbar=not few,
        cbar_kws=None if few else bar, linewidths=0.3 if few else 0, linecolor="#DDDDDD", **options,
    )  # fmt: skip
    for i, count in enumerate(diagonal if few else ()):
        ax.text(i + 0.5, i + 0.5, str(count), ha="center", va="center", fontsize=7)
    shown = range(0, len(classes), -(-len(classes) // 14))
    names = [shorten(classes[i], LONGEST_LABEL) for i in shown]
    ax.grid(False)
    ax.set(xlabel="predicted class", title=title)
    ax.set_xticks(np.array(shown) + 0.5, names, rotation=90 if max(map(len, names)) > 2 else 0)
    ax.set_yticks(np.array(shown) + 0.5, names, rotation=0)
    ax.tick_params(length=0, labelsize=7.5)


def per_class_accuracy(runs: Sequence[RunRecord]) -> Figure:
    """Share of each class that is recognized, with 95 % Wilson intervals; of many classes the hardest ones."""
    classes = runs[0].dataset.classes
    accuracies = [[wilson(row[i], sum(row)) for i, row in enumerate(run.confusion)] for run in runs]
    hardest = sorted(range(len(classes)), key=lambda i: min(accuracy[i].value for accuracy in accuracies))
    shown = sorted(hardest[:MOST_CLASSES_SHOWN])
    rows = np.arange(len(shown))
    figure, axes = new_figure(1, 1, height=1.2 + 0.25 * len(shown))
    ax = axes[0, 0]
    for offset, run, accuracy in zip((-0.16, 0.16), runs, accuracies, strict=False):
        shares = scaled([accuracy[i] for i in shown], 100)
        ax.errorbar(
            [share.value for share in shares], rows + offset, xerr=error_bars(shares), fmt=MARKERS[run.kind],
            color=COLOURS[run.kind], capsize=2.5,
            label=f"{run.kind} (all classes: {percent(run.test_accuracy)})",
        )  # fmt: skip
    xlabel = "images of the class that are recognized (%), 95 % interval"
    if len(shown) < len(classes):
        xlabel += f"\nonly the {len(shown)} hardest of {len(classes)} classes"
    ax.set(yticks=rows, yticklabels=[shorten(classes[i], 24) for i in shown], xlabel=xlabel)
    ax.set_ylim(len(shown) - 0.5, -0.5)
    figure.legend(loc="outside lower center", ncols=2)
    worst = [min(range(len(classes)), key=lambda i: accuracy[i].value) for accuracy in accuracies]
    words = [
        f"{run.kind} {shorten(classes[i], 20)} ({percent(accuracy[i].value)})"
        for run, accuracy, i in zip(runs, accuracies, worst, strict=True)
    ]
    set_finding(figure, f"Hardest class: {', '.join(words)}")
    return figure


def sampler_shards(orders: np.ndarray, batch_size: int) -> Figure:
    """Which rank visits which image: `orders` is (epochs, ranks, images per rank), as from DistributedSampler."""
    epochs, ranks, each = orders.shape
    wide = len(str(orders.max()))
    figure, axes = new_figure(epochs, 1, height=0.9 + (0.35 + 0.26 * ranks) * epochs)
    for epoch, ax in enumerate(axes[:, 0]):
        for rank in range(ranks):
            colour = RANKS[rank % len(RANKS)]
            for position, image in enumerate(orders[epoch, rank]):
                ax.text(position, rank, f"{int(image):>{wide}}", ha="center", va="center", fontsize=8,
                        family="monospace", color=text_colour(colour), weight="bold",
                        bbox={"boxstyle": "square,pad=0.3", "facecolor": colour, "edgecolor": "none"})  # fmt: skip
        for edge in range(batch_size, each, batch_size):
            ax.axvline(edge - 0.5, color=GREY, linestyle=":")
        ax.set(xlim=(-0.6, each - 0.4), ylim=(ranks - 0.45, -0.55), yticks=range(ranks), xticks=range(each))
        ax.set(yticklabels=[f"rank {rank}" for rank in range(ranks)], title=f"epoch {epoch + 1}")
        ax.set_xticklabels(range(1, each + 1))
        ax.grid(False)
    axes[-1, 0].set_xlabel(f"position in the rank's epoch (dotted: a batch of {batch_size} ends)")
    set_finding(figure, _shards_finding(orders))
    return figure


def _shards_finding(orders: np.ndarray) -> str:
    epochs, ranks, each = orders.shape
    alone = all(len(np.unique(epoch)) == ranks * each for epoch in orders)
    finding = f"Indices of the images: {'no image is visited twice' if alone else 'some images are visited twice'}"
    if epochs > 1:
        same = (orders == orders[0]).all()
        finding += f"; the order {'is the same in each epoch' if same else 'changes with the epoch'}"
    return finding
