"""The figure of a run that lost a rank. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from matplotlib.figure import Figure

from ddp_workbook.plots import BLUE, GREY, ORANGE, new_figure


@dataclass
class Life:
    """What was seen of a run, in seconds since it was started."""

    seconds: float = 0.0
    """Until its end."""
    epochs: list[tuple[float, int]] = field(default_factory=list)
    """When each epoch was done; one that was done twice is there twice."""
    events: dict[str, float] = field(default_factory=dict)
    """When something happened to a rank, in words."""


def lives(disturbed: Life, undisturbed: Life) -> Figure:
    """Epochs done over time, of a run whose rank was killed and of one that was left alone."""
    figure, [[ax]] = new_figure(1, 1, 8.0, 3.6)
    for life, colour, marker, name in (
        (undisturbed, BLUE, "o", "undisturbed"),
        (disturbed, ORANGE, "s", "one rank killed"),
    ):
        times, epochs = zip(*life.epochs, strict=True)
        ax.step(times, epochs, where="post", color=colour, marker=marker, markersize=4, label=name)
    top = max(epoch for _, epoch in undisturbed.epochs)
    for number, (what, when) in enumerate(disturbed.events.items()):
        ax.axvline(when, color=GREY, linestyle=":", linewidth=1)
        ax.text(when, top * (0.30 - 0.10 * number), f" {what}, {when:.1f} s", fontsize=8, va="center")
    ax.set(
        xlabel="time since the start of the run (s)",
        ylabel="epochs done",
        xlim=(0, 1.2 * max(disturbed.seconds, 1)),
        ylim=(0, 1.05 * top),
    )
    ax.legend(loc="upper left")
    return figure
