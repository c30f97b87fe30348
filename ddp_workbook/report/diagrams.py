"""The report's two diagrams: the parts of the workbook, and what happens in a step."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from ddp_workbook.analysis.plots import BLUE, GREEN, GREY, ORANGE, STYLE


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty drawing, 100 units wide, with the same unit in both directions."""
    plt.rcParams.update(STYLE)
    figure, ax = plt.subplots(figsize=(width, height))
    ax.set(xlim=(0, 100), ylim=(0, 100 * height / width))
    ax.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)
    return figure, ax


def _box(ax: Axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    """A rounded box whose lower left corner is (x, y)."""
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=1.2", facecolor=colour + "22", edgecolor=colour
    )
    ax.add_patch(shape)
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9, linespacing=1.25)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], both: bool = False) -> None:
    style = {"arrowstyle": "<->" if both else "->", "color": GREY, "shrinkA": 2, "shrinkB": 2}
    ax.annotate("", xy=end, xytext=start, arrowprops=style)


def architecture(processes: int, backend: str) -> Figure:
    """Launcher, ranks, process group, records and what reads them."""
    figure, ax = _canvas(7, 3.9)
    _box(ax, 2, 44, 20, 9, "notebook 02\n(one process)", BLUE)
    _box(ax, 2, 26, 20, 9, "notebook 03:\ntorchrun", ORANGE)
    ranks = [0, 1] if processes == 2 else [0, processes - 1]
    _box(ax, 32, 44, 26, 9, "loop.fit\nbaseline", BLUE)
    for number, rank in enumerate(ranks):
        y = 27 - 13 * number
        _box(ax, 32, y, 26, 9, f"loop.fit, rank {rank}\nmodel copy, own shard", ORANGE)
        _arrow(ax, (22, 30.5), (32, y + 4.5))
    _arrow(ax, (45, 27), (45, 23), both=True)
    ax.text(46.5, 25, f"{backend}: all-reduce", fontsize=8, va="center", color=GREY)
    if processes > 2:
        ax.text(45, 11, f"{processes} ranks in all", ha="center", fontsize=8, color=GREY)
    _arrow(ax, (22, 48.5), (32, 48.5))
    _box(ax, 68, 31, 13, 12, "records\n(JSON),\ncheckpoints", GREEN)
    _arrow(ax, (58, 48.5), (68, 39))
    _arrow(ax, (58, 31.5), (68, 35))
    _box(ax, 87, 41, 12, 9, "notebook\n04", BLUE)
    _box(ax, 87, 24, 12, 9, "report\n(PDF)", BLUE)
    _arrow(ax, (81, 38), (87, 44))
    _arrow(ax, (81, 36), (87, 29))
    return figure


def data_flow(processes: int) -> Figure:
    """One training step of a rank, from the images in memory to the weights."""
    figure, ax = _canvas(7, 2.9)
    steps = [
        ("images\nin memory\n(uint8)", GREEN),
        (f"shard of\n1/{processes}:\nsampler", GREEN),
        ("crop, flip,\nnormalize", GREEN),
        ("forward:\nlogits,\nloss", BLUE),
        ("backward:\ngradients", BLUE),
        ("step:\nweights", BLUE),
    ]
    for number, (text, colour) in enumerate(steps):
        x = 1 + 16.8 * number
        _box(ax, x, 22, 13.2, 13, text, colour)
        if number:
            _arrow(ax, (x - 3.6, 28.5), (x, 28.5))
    _box(ax, 59, 4, 31, 9, "all-reduce over the ranks,\nbucket by bucket, during backward", ORANGE)
    _arrow(ax, (73, 22), (73, 13), both=True)
    ax.text(1, 37.5, "the same in every rank", fontsize=8, color=GREY)
    return figure
