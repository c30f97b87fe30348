"""Who talks to whom on a mesh of ranks, data x tensor, and how much: from the ledger, beside the closed forms."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddp_workbook.analysis.mesh import Traffic
from ddp_workbook.analysis.plots_style import BLUE, INK, ORANGE, new_figure, set_finding

MIB = 2**20
WIDEST = 9.0  # points: the line of the pair that exchanges most
COLOURS = {"tensor": ORANGE, "data": BLUE}
LINES = {"tensor": "-", "data": (0, (1.2, 0.6))}  # to be told apart without colours, too


def mesh_map(measured: Mapping[tuple[int, ...], Traffic], predicted: Mapping[str, Traffic]) -> Figure:
    """A mesh of 2 x 2 ranks with a line between each two of them that are in a collective.

    `measured`: by group, ranks in order; `predicted`: by dimension, "tensor" and "data". A line is as wide as the
    bytes of a step are many. The bytes are the same in each step and on each rank of a group, so they have no spread.
    """
    figure, [[ax]] = new_figure(1, 1, height=3.5)
    most = max(traffic.bytes for traffic in measured.values())
    for ranks, traffic in measured.items():
        _draw_pair(ax, ranks, traffic, predicted[_dimension(ranks)], WIDEST * traffic.bytes / most)
    for rank in range(4):
        x, y = _place(rank)
        ax.text(x, y, f"rank {rank}", ha="center", va="center", color=INK, fontsize=9, weight="bold", zorder=3,
                bbox={"boxstyle": "circle,pad=0.5", "facecolor": "white", "edgecolor": INK})  # fmt: skip
    ax.set(xlim=(-0.6, 1.6), ylim=(1.5, -0.5), xticks=(0, 1), yticks=(0, 1))
    ax.set_xlabel("place in the tensor dimension: each has half of every block")
    ax.set_ylabel("place in the data dimension:\neach has half of the images")
    ax.grid(False)
    found = {_dimension(ranks): traffic for ranks, traffic in measured.items()}
    tensor, data = (f"{_times(found[name].collectives)} and exchanges {_size(found[name])}" for name in COLOURS)
    silent = [f"{one} and {other}" for one, other in combinations(range(4), 2) if (one, other) not in measured]
    finding = f"in a step a tensor pair meets {tensor}, a data pair {data}"
    set_finding(figure, f"A mesh of 2 × 2 ranks: {finding}; ranks {', and '.join(silent)}, never talk")
    return figure


def _place(rank: int) -> tuple[int, int]:
    """Column (tensor) and row (data)."""
    return rank % 2, rank // 2


def _dimension(ranks: tuple[int, ...]) -> str:
    """The dimension in which two neighbours of the mesh differ. Raises ValueError for any other group."""
    if len(ranks) != 2:
        raise ValueError(f"ranks {ranks} are no pair")
    (x, y), (other_x, other_y) = map(_place, ranks)
    if (x != other_x) == (y != other_y):
        raise ValueError(f"ranks {ranks} are no neighbours in the mesh")
    return "tensor" if y == other_y else "data"


def _draw_pair(ax: Axes, ranks: tuple[int, ...], found: Traffic, expected: Traffic, width: float) -> None:
    dimension = _dimension(ranks)
    (x, y), (other_x, other_y) = map(_place, ranks)
    style = {"linewidth": width, "color": COLOURS[dimension], "linestyle": LINES[dimension]}
    ax.plot((x, other_x), (y, other_y), zorder=1, **style)
    text = f"{dimension} pair\n{found.collectives:.0f} all-reduce{'s' * (found.collectives != 1)}, {_size(found)}"
    text += f"\n(predicted: {expected.collectives:.0f}, {_size(expected)})"
    place = {"ha": "center", "va": "center", "fontsize": 8, "color": COLOURS[dimension]}
    if dimension == "tensor":
        ax.text(0.5, y + (-0.25 if y == 0 else 0.25), text, **place)
    else:
        ax.text(x + (-0.04 if x == 0 else 0.04), 0.5, text, **(place | {"ha": "right" if x == 0 else "left"}))


def _size(traffic: Traffic) -> str:
    return f"{traffic.bytes / MIB:.2f}\u00a0MiB"


def _times(count: float) -> str:
    return "once" if count == 1 else f"{count:.0f} times"
