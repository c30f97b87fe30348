"""Figures: the same bytes each time, drawn as the records say, with letters that can be read and true titles."""

from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from helper_map import curve_map
from helper_plots import finding, make_rank_bytes, make_shared, make_waiting, make_weak, points, with_outlier
from helper_records import make_benchmark, make_breakdown, make_run, make_sweep
from helper_seeds import count_study
from matplotlib.text import Text

from ddp_workbook.analysis import (
    plots,
    plots_cost,
    plots_map,
    plots_memory,
    plots_mesh,
    plots_ring,
    plots_seeds,
    plots_speed,
    plots_style,
)
from ddp_workbook.analysis.clusters import Cluster
from ddp_workbook.analysis.costmodel import Link, ModelCosts
from ddp_workbook.analysis.memory import StepBytes
from ddp_workbook.analysis.mesh import Traffic
from ddp_workbook.analysis.speedup import speedup_table
from ddp_workbook.errors import InputError
from ddp_workbook.records.timing import Interval

MIB = 2**20
RUNS, HISTORIES = zip(make_run(), make_run("distributed", correct=88), strict=True)
STEPS_IN_MEMORY = {  # measured, predicted
    "A model, batch 16": (
        StepBytes(4 * MIB, 4 * MIB, 8 * MIB, 16 * MIB),
        StepBytes(4 * MIB, 4 * MIB, 8 * MIB, 17.6 * MIB),
    ),
    "Another one, batch 128": (StepBytes(MIB, MIB, MIB, 27 * MIB), StepBytes(MIB, MIB, MIB, 27 * MIB)),
}
TALK = dict.fromkeys([(0, 1), (2, 3)], Traffic(16, 2**23)) | dict.fromkeys([(0, 2), (1, 3)], Traffic(1, 2**21))

FIGURES = {
    "curves": lambda: plots.training_curves(HISTORIES),
    "one run": lambda: plots.training_curves(HISTORIES[:1]),
    "confusion": lambda: plots.confusion_matrices(RUNS),
    "classes": lambda: plots.per_class_accuracy(RUNS),
    "comparison": lambda: plots.baseline_vs_distributed(RUNS, HISTORIES),
    "speedup": lambda: plots_speed.speedup_analysis(make_benchmark()),
    "scaling": lambda: plots_speed.scaling_comparison(make_benchmark(), make_weak()),
    "experiment, speedup": lambda: plots_speed.speedup_by_processes(make_benchmark()),
    "experiment, efficiency": lambda: plots_speed.efficiency_by_processes(make_benchmark()),
    "experiment, losses": lambda: plots_speed.loss_curves(make_benchmark()),
    "experiment, comparison": lambda: plots_speed.training_comparison(make_benchmark()),
    "one run's plots": lambda: plots.training_plots(RUNS[1], make_waiting()),
    "cost of averaging": lambda: plots_cost.sync_cost({"Gloo": make_breakdown(), "shared memory": make_shared()}),
    "timeline": lambda: plots_cost.timeline(make_breakdown()),
    "all-reduce": lambda: plots_cost.all_reduce_fit(make_sweep().all_reduce),
    "ring of 4": lambda: plots_ring.ring(),
    "ring of 3": lambda: plots_ring.ring(3),
    "when it pays": lambda: plots_cost.pay_panels(make_sweep(), "resnet50", make_shared(), make_weak()),
    "when it pays, with an outlier": lambda: plots_cost.pay_panels(with_outlier(make_sweep()), "mlp"),
    "predicted here": lambda: plots_cost.predicted_here(make_sweep(), "mlp", 64, [(2, Interval(0.9, 0.8, 1.1))]),
    "predicted on a network": lambda: plots_cost.predicted_on_network(
        ModelCosts(make_sweep(), "mlp"), 64, Link(5e-5, 1e9), 16, "predicted: a recipe"
    ),
    "predicted on a cluster": lambda: plots_cost.predicted_on_network(
        ModelCosts(make_sweep(), "mlp"), 64, Cluster(6, Link(3e-6, 4e10), Link(5e-5, 1e9)), 96, "predicted: a recipe"
    ),
    "predicted beyond the images": lambda: plots_cost.predicted_on_network(
        ModelCosts(make_sweep(), "resnet50"), 512, Link(5e-5, 1e9), 4096, "predicted: a recipe"
    ),
    "one machine": lambda: plots_cost.predicted_on_network(
        ModelCosts(make_sweep(), "mlp"), 64, Link(5e-5, 1e9), 1, "predicted: a recipe"
    ),
    "batch map": lambda: plots_map.batch_map(curve_map([16, 32, 64, 128], [0.75, 0.85, 0.95, 1.05])),
    "seeds": lambda: plots_seeds.seeds(count_study()),
    "memory": lambda: plots_memory.memory_by_ranks("A model", make_rank_bytes(), 4 * 2**20, 2),
    "a step's memory": lambda: plots_memory.step_bars(STEPS_IN_MEMORY),
    "mesh": lambda: plots_mesh.mesh_map(TALK, {"tensor": TALK[0, 1], "data": TALK[0, 2]}),
    "schedule": lambda: plots.schedule([0.1, 0.2, 0.1], 1),
    "shards": lambda: plots.sampler_shards(np.arange(24).reshape(2, 2, 6), 3),
    "images": lambda: plots.image_row(np.zeros((10, 4, 4, 3), dtype=np.uint8), ["a rather long name"] * 10),
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


def drawn_texts(figure, monkeypatch):
    """All texts that really appear: an axis draws no label beyond its limits."""
    texts, draw = [], Text.draw
    monkeypatch.setattr(Text, "draw", lambda text, renderer: texts.append(text) or draw(text, renderer))
    figure.canvas.draw()
    return [text for text in dict.fromkeys(texts) if text.get_visible() and text.get_text().strip()]


@pytest.mark.parametrize("name", FIGURES)
def test_letters_can_be_read_on_paper(name, monkeypatch):
    """At least 7 points, all inside the figure, which fits the page; no two texts on each other."""
    figure = FIGURES[name]()
    assert figure.get_figwidth() <= plots_style.WIDTH
    texts = drawn_texts(figure, monkeypatch)
    assert min(text.get_fontsize() for text in texts) >= 7
    boxes = {text: text.get_window_extent() for text in texts}
    for text, box in boxes.items():
        assert box.x0 > -1 and box.x1 < figure.bbox.x1 + 1, text.get_text()
        assert box.y0 > -1 and box.y1 < figure.bbox.y1 + 1, text.get_text()
    for (first, one), (second, other) in combinations(boxes.items(), 2):
        # a line's box has room for letters that it does not have
        assert not one.shrunk(0.96, 0.7).overlaps(other.shrunk(0.96, 0.7)), (first.get_text(), second.get_text())


def test_a_figure_appears_as_png(tmp_path):
    plots.save_png(FIGURES["schedule"](), tmp_path / "a" / "figure.png")
    assert (tmp_path / "a" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums()  # a notebook shows it afterwards
    plt.close("all")
    plots.write_png(FIGURES["schedule"](), tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "a" / "figure.png").read_bytes()
    assert not plt.get_fignums()


def test_speedups_and_bounds_are_those_of_the_record():
    """Speedups of 1.5 and 0.9; without communication 2 and 1.2; in the figure of process counts, too."""
    assert [row.speedup.value for row in speedup_table(make_benchmark())] == pytest.approx([1.5, 0.9])
    figure = FIGURES["speedup"]()
    assert {x for x, _ in points(figure.axes[1], plots_style.ORANGE)} == {1.5, 0.9}
    assert {x for x, _ in points(figure.axes[1], plots_style.GREY)} == {2.0, 1.2}
    assert "1.50 over 1 process with 1 thread, 0.90 over 1 process with 2 threads" in finding(figure)
    ax = FIGURES["experiment, speedup"]().axes[0]
    assert {y for _, y in points(ax, plots_style.ORANGE)} == {1.5, 0.9}
    assert {y for _, y in points(ax, plots_style.GREY)} == {2.0, 1.2}


def test_the_two_scalings_stand_next_to_each_other():
    figure = FIGURES["scaling"]()
    assert {x for x, _ in points(figure.axes[0], plots_style.ORANGE)} == {1.5, 1.8, 0.9, 1.08}
    assert finding(figure).endswith("0.90 (64 images split, all-reduce), 1.08 (64 images each, shared memory)")
    other = make_weak().model_copy(update={"configurations": make_weak().configurations[1:]})
    with pytest.raises(InputError, match="no baseline '1 process, 1 thread'"):
        plots_speed.scaling_comparison(make_benchmark(), other)


def test_the_matrices_show_counts_errors_and_changes():
    """88 and 90 of 100 correct in each of two classes: 12 % errors, 2 correct predictions fewer."""
    figure = FIGURES["confusion"]()
    counts, errors, change = ([text.get_text() for text in ax.texts] for ax in figure.axes)
    assert sorted(filter(None, counts)) == ["12", "12", "88", "88"]
    assert errors == ["", "12", "12", ""]
    assert change == ["-2", "2", "2", "-2"]
    assert "12.0 % of the class “zero” are taken for “one”" in finding(figure)


@pytest.mark.parametrize("classes", [3, 100])
def test_many_classes_and_long_names_fit(classes):
    names = [f"a class with a very long name, number {number}" for number in range(classes)]
    confusion = (np.eye(classes, dtype=int) * 4 + np.roll(np.eye(classes, dtype=int), 1, axis=1)).tolist()
    dataset = RUNS[0].dataset.model_copy(update={"classes": names, "test_images": 5 * classes})
    runs = [run.model_copy(update={"dataset": dataset, "confusion": confusion}) for run in RUNS]
    for figure in (plots.confusion_matrices(runs), plots.per_class_accuracy(runs)):
        figure.canvas.draw()
        assert figure.get_figheight() < 10  # a page
        for ax in figure.axes[:3]:
            labels = [label.get_window_extent() for label in ax.get_yticklabels() if label.get_text()]
            assert not any(one.shrunk(1, 0.7).overlaps(two) for one, two in combinations(labels, 2))


def test_waiting_is_shown_without_the_sum_of_the_collectives():
    figure = FIGURES["one run's plots"]()
    assert finding(figure).endswith("test accuracy 88.0 % after 2 epochs")
    drawn = [list(line.get_ydata()) for line in figure.axes[2].get_lines()]
    assert drawn == [[10, 10], [0.5, 0.5], [2, 2]]


def test_memory_is_drawn_as_measured():
    """16 MiB on one rank; on two the means of 15.5 and 16.5, 11.5 and 12.5, 7.5 and 8.5; Gloo sends FSDP's 8 MiB."""
    figure = FIGURES["memory"]()
    kept, sent = figure.axes
    assert points(kept, plots_style.GREY) == {(1, 16), (2, 16)}
    assert points(kept, plots_style.BLUE) == {(2, 12)}
    assert points(kept, plots_style.ORANGE) == {(2, 8)}
    assert points(sent, plots_style.ORANGE) == {(2, 8)}
    assert "on 8 ranks FSDP keeps 12 % of what DDP keeps, and sends 1.5 times as much" in finding(figure)
    dotted = next(line for line in sent.get_lines() if line.get_linestyle() == ":")
    assert dotted.get_ydata()[1] == 8


def test_the_bytes_of_a_step_are_bars_in_a_row():
    figure = plots_memory.step_bars(STEPS_IN_MEMORY)
    ends = [round(patch.get_x() + patch.get_width(), 3) for patch in figure.axes[0].patches]
    another, model = [3.333, 6.667, 10, 100], [12.5, 25, 50, 100]
    assert ends == [*another, *another, *model, 12.5, 25, 50, 105]
    assert [text.get_text() for text in figure.axes[0].texts] == [" 30 MiB", " 30 MiB", " 32 MiB", " 34 MiB"]
    shares = "activations take from 50 % of a step's memory (A model) to 90 % (Another one)"
    assert finding(figure) == f"{shares}; predictions are off by at most 5.00 %"


def test_shards_say_whether_images_are_shared_out():
    apart, again = np.arange(24).reshape(1, 2, 12), np.zeros((2, 2, 3), dtype=int)
    assert "no image is visited twice" in finding(plots.sampler_shards(apart, 3))
    assert finding(plots.sampler_shards(again, 3)).endswith(
        "some images are visited twice; the order is the same in each epoch"
    )
