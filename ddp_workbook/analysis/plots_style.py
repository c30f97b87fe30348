"""The style of all figures: one colour code for the whole course.

Blue is the baseline, orange the distributed run, grey the same processes without communication. Training is dashed,
test solid. The parts of a step, and the ranks, have palettes of their own. The colours are Okabe and Ito's and Tol's,
safe for the colour-blind. A figure is as wide as the text of an A4 page, so its letters are printed at their size.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ddp_workbook.records.files import write_atomically
from ddp_workbook.records.timing import Interval

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#595959"
LIGHT_ORANGE, INK = "#EDB48C", "#222222"
COLOURS = {"baseline": BLUE, "distributed": ORANGE}
MARKERS = {"baseline": "o", "distributed": "s"}
PARTS = {"data": "#8C7B6B", "forward": "#CFE5D2", "backward": "#B5A3CE", "optimizer": "#EFE2A4"}
RANKS = ("#44AA99", "#882255", "#DDCC77", "#332288", "#999933", "#CC6677")
WIDTH = 6.3  # inches: the width of the report's text

STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "lines.markersize": 4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "text.parse_math": False,  # in the reader's class names a dollar sign is no formula
    "svg.fonttype": "path",  # letters as shapes: the same on every machine
    "svg.hashsalt": "ddp-workbook",  # the same bytes each time
}


def new_figure(
    rows: int, columns: int, width: float = WIDTH, height: float = 2.8, **options: object
) -> tuple[Figure, np.ndarray]:
    """A figure with a grid of axes (rows, columns) in the style of the workbook; sizes in inches.

    `options` are those of plt.subplots().
    """
    plt.rcParams.update(STYLE)  # not rc_context: it would also reset the notebook's interactive mode
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **options)


def set_finding(figure: Figure, text: str) -> None:
    """The title of the whole figure: what it shows, in lines that fit."""
    width = int(12.5 * figure.get_figwidth())
    lines = textwrap.wrap(text, width)
    while len(shorter := textwrap.wrap(text, width - 1)) == len(lines):  # so that no line has a single word
        lines, width = shorter, width - 1
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=10)


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


def digits(value: float) -> str:
    """The format that shows a number of this size with two or three digits."""
    return ".0f" if abs(value) >= 20 else ".1f" if abs(value) >= 2 else ".2f"


def shorten(name: str, longest: int) -> str:
    """The name, or its beginning and its end with an ellipsis in between."""
    half = longest // 2
    return name if len(name) <= longest else name[: longest - half - 1] + "…" + name[-half:]


def percent(share: float, spec: str = ".1f") -> str:
    """A share in percent; no line breaks before the sign."""
    return f"{100 * share:{spec}}\u00a0%"


def text_colour(background: str) -> str:
    """White or black, whichever can be read on the background (a colour as #RRGGBB)."""
    red, green, blue = (int(background[i : i + 2], 16) for i in (1, 3, 5))
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 130 else "black"
