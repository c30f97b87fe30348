"""Figures: the same bytes each time, labelled axes, and a map whose colours an outlier cannot rule."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from helper_records import make_benchmark, make_breakdown, make_run, make_sweep
from matplotlib.collections import PathCollection, QuadMesh

from ddp_workbook.analysis import plots, plots_cost, plots_speed
from ddp_workbook.analysis.costmodel import Link, ModelCosts, measured_speedup
from ddp_workbook.records.timing import Interval

RUNS, HISTORIES = zip(make_run(), make_run("distributed", correct=88), strict=True)
FIGURES = {
    "curves": lambda: plots.training_curves(HISTORIES),
    "one run": lambda: plots.training_curves(HISTORIES[:1]),
    "confusion": lambda: plots.confusion_matrices(RUNS),
    "classes": lambda: plots.per_class_accuracy(RUNS),
    "comparison": lambda: plots.baseline_vs_distributed(RUNS, HISTORIES),
    "speedup": lambda: plots_speed.speedup_analysis(make_benchmark()),
    "experiment, speedup": lambda: plots_speed.speedup_by_processes(make_benchmark()),
    "experiment, efficiency": lambda: plots_speed.efficiency_by_processes(make_benchmark()),
    "experiment, losses": lambda: plots_speed.loss_curves(make_benchmark()),
    "experiment, comparison": lambda: plots_speed.training_comparison(make_benchmark()),
    "one run's plots": lambda: plots.training_plots(RUNS[1], HISTORIES[1]),
    "breakdown": lambda: plots_cost.step_breakdown(make_breakdown()),
    "timeline": lambda: plots_cost.timeline(make_breakdown().timeline, "one step"),
    "all-reduce": lambda: plots_cost.all_reduce_fit(make_sweep().all_reduce),
    "map": lambda: plots_cost.pay_map(make_sweep()),
    "map with an outlier": lambda: plots_cost.pay_map(with_outlier(make_sweep())),
    "predicted here": lambda: plots_cost.predicted_here(make_sweep(), 64, [(2, Interval(0.9, 0.8, 1.1))]),
    "predicted on a network": lambda: plots_cost.predicted_on_network(
        ModelCosts(make_sweep(), "mlp"), 64, Link(5e-5, 1e9), 16, "predicted"
    ),
    "schedule": lambda: plots.schedule([0.1, 0.2, 0.1], 1),
    "shards": lambda: plots.sampler_shards(np.arange(24).reshape(2, 2, 6), 3),
}


@pytest.fixture(autouse=True)
def no_figures_of_other_tests():
    """A report that fails leaves its figures open."""
    plt.close("all")


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_the_same_bytes_twice_and_its_axes_are_labelled(name):
    figure = FIGURES[name]()
    for ax in figure.axes:
        assert ax.get_ylabel() or ax.get_xlabel() or ax.get_title(), name
    assert plots.to_svg(figure) == plots.to_svg(FIGURES[name]())
    assert not plt.get_fignums()


def test_a_figure_appears_as_png(tmp_path):
    plots.save_png(FIGURES["schedule"](), tmp_path / "a" / "figure.png")
    assert (tmp_path / "a" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums()  # a notebook shows it afterwards
    plt.close("all")
    plots.write_png(FIGURES["schedule"](), tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "a" / "figure.png").read_bytes()
    assert not plt.get_fignums()


def with_outlier(sweep):
    """The first point's distributed steps are a hundred times as fast in two of three rounds: the median is absurd."""
    first = sweep.points[0]
    outlier = first.model_copy(update={"synced": [first.synced[0] / 100] * 2 + first.synced[2:]})
    return sweep.model_copy(update={"points": [outlier, *sweep.points[1:]]})


def read_map(sweep):
    """The map's field, its circles by (global batch, row), its title and the texts on it."""
    figure = plots_cost.pay_map(sweep)
    ax = figure.axes[0]
    [field] = [each for each in ax.collections if isinstance(each, QuadMesh)]
    circles = {tuple(each.get_offsets()[0]): each for each in ax.collections if isinstance(each, PathCollection)}
    title, texts = ax.get_title(), [text.get_text() for text in ax.texts]
    plt.close(figure)
    return field, circles, title, texts


def test_an_outlier_has_no_colour_and_does_not_rule_the_maps_scale():
    """The field does not depend on the outlier, so the colours of everything else must stay as they were."""
    before, _, plain_title, _ = read_map(make_sweep())
    sweep = with_outlier(make_sweep())
    speedup = measured_speedup(sweep.points[0])
    assert speedup.value > 50 * np.max(before.get_array())
    field, circles, title, texts = read_map(sweep)
    assert (field.get_array() == before.get_array()).all()
    assert (field.norm.vmin, field.norm.vcenter, field.norm.vmax) == (before.norm.vmin, 1, before.norm.vmax)
    assert field.norm.vmax < speedup.value / 40
    assert len(circles) == 6
    outlier = circles.pop((2 * sweep.points[0].images, 0))
    assert outlier.get_array() is None
    assert len(set(outlier.get_facecolor()[0, :3])) == 1  # grey or white
    for point, circle in zip(sweep.points[1:], circles.values(), strict=True):
        assert circle.get_array().tolist() == pytest.approx([measured_speedup(point).value])
        assert circle.norm is field.norm
    assert f"{speedup.value:.2f}" in texts
    assert "not settled" in title
    assert "not settled" not in plain_title


def test_settled_points_do_set_the_maps_scale():
    """Where all rounds agree, the measurement is to be seen even far from the prediction."""
    sweep = make_sweep()
    fast = sweep.points[0].model_copy(update={"synced": [sweep.points[0].synced[0] / 10] * 3})
    field, *_ = read_map(sweep.model_copy(update={"points": [fast, *sweep.points[1:]]}))
    assert field.norm.vmax == pytest.approx(measured_speedup(fast).value)
