"""The figure of a study of seeds: accuracies and differences of all seeds, beside the spread of the test set."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ddp_workbook.analysis.plots_style import BLUE, GREY, INK, ORANGE, error_bars, new_figure, scaled, set_finding
from ddp_workbook.analysis.seeds import mean_difference, seed_differences, spread
from ddp_workbook.analysis.statistics import wilson
from ddp_workbook.records.seeds import SeedStudy
from ddp_workbook.records.timing import Interval


def seeds(study: SeedStudy) -> Figure:
    """Above: the accuracy of every seed, mean and range, and beside it what other test images would change.

    Below: distributed minus baseline for each seed, with the paired interval; the mean has the interval over seeds.
    """
    rows = len(study.pairs) + 1
    figure, axes = new_figure(2, 1, height=2.9 + 0.2 * rows, height_ratios=[4, 1 + 0.7 * rows])
    above, below = axes[:, 0]
    names = []
    for y, (kind, colour) in enumerate((("baseline", BLUE), ("distributed", ORANGE))):
        found, n = spread(study.accuracies(kind)), study.dataset.test_images
        by_images = wilson(round(found.mean * n), n)
        [range_, images] = scaled([Interval(found.mean, found.smallest, found.largest), by_images], 100)
        above.errorbar(
            range_.value, y - 0.12, xerr=error_bars([range_]), fmt="|", color=colour, markersize=12, capsize=3
        )
        dots = 100 * np.array(study.accuracies(kind))
        above.plot(dots, np.full(len(dots), y - 0.12), "o", color=colour, alpha=0.5, markeredgewidth=0)
        above.errorbar(images.value, y + 0.2, xerr=error_bars([images]), fmt="none", color=GREY, capsize=3)
        processes = 1 if kind == "baseline" else study.processes
        names.append(f"{processes} process{'es' if processes > 1 else ''}")
    above.set(yticks=[0, 1], yticklabels=names, ylim=(1.5, -0.5))
    above.set_xlabel("test accuracy (%): every seed, mean, range; grey: 95 % interval, other images")
    differences = scaled(seed_differences(study), 100)
    for y, (pair, each) in enumerate(zip(study.pairs, differences, strict=True)):
        below.errorbar(each.value, y, xerr=error_bars([each]), fmt="o", color=GREY, capsize=2)
        names[y:] = [f"seed {pair.seed}"]
    [mean] = scaled([mean_difference(study)], 100)
    below.errorbar(mean.value, rows - 1, xerr=error_bars([mean]), fmt="D", color=INK, capsize=3)
    below.axvline(0, color=INK, linewidth=0.8)
    below.set(yticks=range(rows), yticklabels=[*names, "mean of seeds"], ylim=(rows - 0.5, -0.5))
    below.set_xlabel("difference in points: paired interval of a seed, Student's t of the mean")
    word = "shows no" if mean.low <= 0 <= mean.high else "shows a"
    set_finding(
        figure,
        f"{study.recipe}: the mean of {len(study.pairs)} seeds {word} difference ({mean.text('+.2f')} points); between "
        f"seeds the accuracy of {study.processes} processes varies by "
        f"{100 * (found.largest - found.smallest):.2f} points",
    )
    return figure
