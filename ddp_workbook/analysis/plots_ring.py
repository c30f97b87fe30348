"""The ring all-reduce as a picture: who sends which chunk in which step, and what every rank then holds."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Patch, Rectangle

from ddp_workbook.analysis.plots_style import INK, ORANGE, RANKS, new_figure, set_finding
from ddp_workbook.errors import InputError

CHUNKS = "abcd"
FEWEST_RANKS, MOST_RANKS = 3, 4
BOX = 0.78  # width and height of a rank's box; the ring has radius 1

Sends = list[tuple[int, int, int]]  # (from rank, to rank, chunk)


def ring_sends(ranks: int) -> list[Sends]:
    """What is sent in each of the 2(N-1) steps: N-1 of reduce-scatter, then N-1 of all-gather."""
    scatter = [[(r, (r + 1) % ranks, (r - step) % ranks) for r in range(ranks)] for step in range(ranks - 1)]
    gather = [[(r, (r + 1) % ranks, (r + 1 - step) % ranks) for r in range(ranks)] for step in range(ranks - 1)]
    return scatter + gather


def ring_states(ranks: int) -> list[np.ndarray]:
    """Before each step and at the end: a boolean array (rank, chunk, whose gradients the chunk's sum holds)."""
    held = np.repeat(np.eye(ranks, dtype=bool)[:, None], ranks, axis=1)  # every rank begins with its own gradients
    states = [held]
    for sends in ring_sends(ranks):
        after = held.copy()
        for sender, receiver, chunk in sends:
            after[receiver, chunk] |= held[sender, chunk]  # reduce-scatter adds; all-gather replaces by the whole sum
        states.append(held := after)
    return states


def ring(ranks: int = 4) -> Figure:
    """The ring all-reduce among 3 or 4 ranks, step by step: every arrow is one message with one chunk.

    Raises InputError for another number of ranks: fewer have no ring, more cannot be read.
    """
    if not FEWEST_RANKS <= ranks <= MOST_RANKS:
        raise InputError(f"the ring is drawn for {FEWEST_RANKS} or {MOST_RANKS} ranks, not {ranks}")
    sends, states = ring_sends(ranks), ring_states(ranks)
    figure, axes = new_figure(2, ranks, height=1.3 + 2 * 6.3 / ranks)
    for row, phase in enumerate(("Reduce-scatter: add up", "All-gather: hand out")):
        first = row * (ranks - 1)
        for column in range(ranks - 1):
            step = first + column
            _draw_panel(axes[row, column], states[step], sends[step], f"step {step + 1}")
        result = "one finished sum each" if row == 0 else "all sums on all ranks"
        _draw_panel(axes[row, -1], states[first + ranks - 1], [], result)
        axes[row, 0].set_ylabel(phase, fontsize=9, weight="bold")
    patches = [Patch(color=RANKS[rank], label=f"of rank {rank}") for rank in range(ranks)]
    patches += [Patch(facecolor="none", edgecolor=ORANGE, linewidth=1.6, label="sent in this step")]
    patches += [Patch(facecolor="none", edgecolor=INK, linewidth=1.6, label="finished sum")]
    figure.legend(
        handles=patches,
        loc="outside lower center",
        ncols=len(patches),
        columnspacing=1.2,
        handlelength=1.4,
        title="a bar is a chunk; its stripes show whose gradients its sum holds",
        title_fontsize=8,
    )
    steps, share = ranks - 1, f"1/{ranks}"
    set_finding(
        figure,
        f"Ring all-reduce: each of {ranks} ranks sends 2 × {steps} chunks, and each chunk is {share} of its "
        f"gradients: 2(N−1)/N = {2 * steps / ranks:.3g} times their size",
    )
    return figure


def _places(ranks: int) -> np.ndarray:
    """Centres of the ranks' boxes, clockwise from the top left: (ranks, 2)."""
    angles = np.pi * (0.5 + 1 / ranks) - 2 * np.pi * np.arange(ranks) / ranks
    if ranks % 2:
        angles -= np.pi / ranks  # the first one at the top
    radius = 1.0 if ranks == 3 else 0.25 * ranks + 0.1
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _draw_panel(ax: Axes, held: np.ndarray, sends: Sends, title: str) -> None:
    """One step: what the ranks hold before it, and the chunks that they send."""
    places = _places(len(held))
    boxes = [_draw_rank(ax, place, rank, held[rank], [c for r, _, c in sends if r == rank])
             for rank, place in enumerate(places)]  # fmt: skip
    for sender, receiver, chunk in sends:
        begin, end = places[sender], places[receiver]
        arrow = FancyArrowPatch(begin, end, patchA=boxes[sender], patchB=boxes[receiver], arrowstyle="-|>",
                                mutation_scale=9, shrinkA=1, shrinkB=1, color=INK, linewidth=1.2)  # fmt: skip
        ax.add_patch(arrow)
        middle = (begin + end) / 2
        ax.text(*middle, CHUNKS[chunk], ha="center", va="center", fontsize=8, weight="bold",
                bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": INK})  # fmt: skip
    ax.set_facecolor("#F4F4F4")
    reach = np.abs(places).max() + 0.85 * BOX
    middle = (places[:, 1].min() + places[:, 1].max()) / 2
    ax.set(xlim=(-reach, reach), ylim=(middle - reach, middle + reach), aspect="equal", xticks=[], yticks=[])
    ax.set_title(title, fontsize=8)
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _draw_rank(ax: Axes, place: np.ndarray, rank: int, held: np.ndarray, sent: list[int]) -> Rectangle:
    """A rank's box: a bar for each chunk, with a stripe for each rank whose gradients its sum holds."""
    ranks = len(held)
    left, top, height = place[0] - BOX / 2, place[1] + BOX / 2, BOX / ranks
    for chunk in range(ranks):
        bottom = top - (chunk + 1) * height
        for origin in np.flatnonzero(held[chunk]):
            stripe = (left + origin * BOX / ranks, bottom)
            ax.add_patch(Rectangle(stripe, BOX / ranks, height, facecolor=RANKS[origin], edgecolor="none", zorder=1.5))
    outer = 1 if place[0] > 0.1 else -1
    for chunk in range(ranks):
        middle = (place[0] + outer * (BOX / 2 + 0.13), top - (chunk + 0.5) * height)
        ax.text(*middle, CHUNKS[chunk], ha="center", va="center", fontsize=7)
        line = {"edgecolor": "#999999", "linewidth": 0.5}
        if chunk in sent:
            line = {"edgecolor": ORANGE, "linewidth": 1.8, "zorder": 3}
        elif held[chunk].all():
            line = {"edgecolor": INK, "linewidth": 1.6, "zorder": 2}
        ax.add_patch(Rectangle((left, top - (chunk + 1) * height), BOX, height, facecolor="none", **line))
    above = place[1] > 0
    ax.text(place[0], place[1] + (0.56 if above else -0.56) * BOX, f"rank {rank}", ha="center", fontsize=7.5,
            va="bottom" if above else "top")  # fmt: skip
    frame = Rectangle((left, top - BOX), BOX, BOX, facecolor="white", edgecolor="#999999", linewidth=0.8)
    ax.add_patch(frame)
    return frame
