"""Figures: the same bytes each time, drawn as the records say, with letters that can be read and true titles."""

from collections import Counter
from dataclasses import replace
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from helper_records import make_benchmark, make_breakdown, make_run, make_steps, make_sweep
from matplotlib.patches import FancyArrowPatch
from matplotlib.text import Text

from ddp_workbook.analysis import plots, plots_cost, plots_ring, plots_speed, plots_style
from ddp_workbook.analysis.costmodel import Link, ModelCosts, exposed, fit_link, measured_speedup
from ddp_workbook.analysis.speedup import over_all_cores, speedup_table
from ddp_workbook.errors import InputError
from ddp_workbook.records.run import Communication
from ddp_workbook.records.timing import Interval

RUNS, HISTORIES = zip(make_run(), make_run("distributed", correct=88), strict=True)


def make_shared():
    """The breakdown with 1 ms of exposed communication instead of 3."""
    return make_breakdown().model_copy(update={"synced": [make_steps(0.011, collectives=0.002, waited=0.001)] * 2})


def make_weak():
    """Every process gets 64 images, through shared memory; 1.2 times as fast as in the benchmark of the split batch."""
    record = make_benchmark()
    config = replace(record.config, comm_hook="shared-memory")
    configurations = [
        each.model_copy(update={
            "batch_size": 64,
            "images_per_second": [(1.2 if each.processes > 1 else 1) * rate for rate in each.images_per_second],
        })
        for each in record.configurations
    ]  # fmt: skip
    return record.model_copy(update={"scaling": "weak", "config": config, "configurations": configurations})


def make_waiting():
    """The distributed run's history with 2 s of waiting in each epoch of 10 s."""
    waited = Communication(waited_seconds=2.0, collective_seconds=7.0, gradient_bytes=100, collectives=5)
    epochs = [epoch.model_copy(update={"communication": waited}) for epoch in HISTORIES[1].epochs]
    return HISTORIES[1].model_copy(update={"epochs": epochs})


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
    "one machine": lambda: plots_cost.predicted_on_network(
        ModelCosts(make_sweep(), "mlp"), 64, Link(5e-5, 1e9), 1, "predicted: a recipe"
    ),
    "schedule": lambda: plots.schedule([0.1, 0.2, 0.1], 1),
    "shards": lambda: plots.sampler_shards(np.arange(24).reshape(2, 2, 6), 3),
    "images": lambda: plots.image_row(np.zeros((10, 4, 4, 3), dtype=np.uint8), ["a rather long name"] * 10),
}


@pytest.fixture(autouse=True)
def no_figures_of_other_tests():
    """A report that fails leaves its figures open."""
    plt.close("all")


def finding(figure):
    """The figure's title in one line."""
    return figure.get_suptitle().replace("\n", " ").replace("\u00a0", " ")


def bars(ax):
    """[(row, left, width)] of the horizontal bars, in the order in which they were drawn."""
    return [(bar.get_y() + bar.get_height() / 2, bar.get_x(), bar.get_width()) for bar in ax.patches]


def points(ax, colour):
    """{(x, y)} of the markers of error bars in this colour, rounded."""
    lines = [bar.lines[0] for bar in ax.containers if bar.lines[0].get_color() == colour]
    return {(round(float(x), 4), round(float(y), 4)) for line in lines for x, y in zip(*line.get_data(), strict=True)}


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


def test_the_cost_is_drawn_from_the_step_without_averaging():
    """Steps of 10 ms; 3 ms more through Gloo, 1 ms through shared memory: bars end at 10.05, and that plus these."""
    figure = FIGURES["cost of averaging"]()
    ax = figure.axes[0]
    ends = {}
    for row, left, width in bars(ax):
        ends[round(row)] = left + width
    added = [1000 * exposed(record).value for record in (make_breakdown(), make_shared())]
    base = 1000 * float(np.median([0.010 * x for x in (1.0, 1.02, 0.99, 1.01, 1.03, 0.98)]))
    assert added == pytest.approx([3.015, 1.005])
    assert ends == pytest.approx({0: base, 1: base + added[0], 2: base + added[1]})
    assert [label.get_text() for label in ax.get_yticklabels()] == ["no averaging", "Gloo", "shared memory"]
    words = f"adds {added[0]:.1f} ms to a step of {base:.1f} ms; with shared memory {added[1]:.2f} ms"
    assert finding(figure).endswith(words)
    texts = " ".join(text.get_text() for text in ax.texts)
    assert "+3.0 ms [2.9, 3.1]" in texts
    assert "all-reduces sum to 6.0\u00a0ms:\nnot the overhead" in texts


def test_a_cost_that_could_be_nothing_is_called_so():
    synced = [make_steps(0.013)[:3] + make_steps(0.009)[3:]] * 2
    record = make_breakdown().model_copy(update={"synced": synced})
    assert exposed(record).low < 0 < exposed(record).high
    assert finding(plots_cost.sync_cost({"Gloo": record})).endswith("(the interval contains 0)")


def test_the_timeline_compares_with_a_real_step_without_averaging():
    """The measured step ends at 13 ms, the median step under no_sync at 10.1 ms; 2 ms come after the last gradient."""
    figure = FIGURES["timeline"]()
    ax = figure.axes[0]
    rows = {}
    for row, left, width in bars(ax):
        rows.setdefault(round(row), []).append((round(left, 6), round(left + width, 6)))
    assert rows[0][-1][1] == pytest.approx(10.1)
    assert rows[1][-1][1] == pytest.approx(13)
    assert rows[2] == [(6, 9), (9, 9)]
    assert rows[3] == [(10, 10), (10, 12)]
    assert [label.get_text() for label in ax.get_yticklabels()][2:] == [
        "bucket 1 (last layers)",
        "bucket 2 (first layers)",
    ]
    assert "+2.9 ms" in [text.get_text() for text in ax.texts]
    assert finding(figure).startswith(
        "2.0 ms of the all-reduces come after the last gradient: this step is 2.9 ms longer"
    )


def test_the_reason_why_backward_is_slower_is_given_on_cpus_only():
    hidden = make_breakdown().timeline.model_copy(update={"buckets": make_breakdown().timeline.buckets[:1]})
    record = make_breakdown().model_copy(update={"timeline": hidden.model_copy(update={"marks": [0, 0, 0, 0, 0.03]})})
    assert "the same cores send" in finding(plots_cost.timeline(record))
    gpu = record.environment.model_copy(update={"device": "cuda"})
    assert "cores" not in finding(plots_cost.timeline(record.model_copy(update={"environment": gpu})))


def test_the_line_of_the_all_reduce_is_the_cost_models():
    sweep = make_sweep()
    [ax] = FIGURES["all-reduce"]().axes
    [line] = [line for line in ax.get_lines() if line.get_label().startswith("fit")]
    link = fit_link(sweep.all_reduce)
    assert line.get_ydata() == pytest.approx([1000 * link.all_reduce(s.bytes, 2) for s in sweep.all_reduce.samples])
    assert "fixed cost per message 20 µs, rate 1.00 GB/s" in line.get_label()


@pytest.mark.parametrize("ranks", [3, 4])
def test_the_ring_is_an_all_reduce(ranks):
    """Moving numbers by the drawn arrows gives every rank every sum, and each rank sends 2(N-1) chunks."""
    values = np.random.default_rng(0).integers(0, 100, (ranks, ranks)).astype(float)
    held = values.copy()
    sends = plots_ring.ring_sends(ranks)
    for step, arrows in enumerate(sends):
        before = held.copy()
        for sender, receiver, chunk in arrows:
            assert receiver == (sender + 1) % ranks
            adding = step < ranks - 1
            held[receiver, chunk] = before[sender, chunk] + (before[receiver, chunk] if adding else 0)
    assert (held == values.sum(axis=0)).all()
    assert Counter(sender for arrows in sends for sender, _, _ in arrows) == dict.fromkeys(
        range(ranks), 2 * (ranks - 1)
    )
    states = plots_ring.ring_states(ranks)
    assert (states[ranks - 1].all(axis=2).sum(axis=1) == 1).all()  # one finished sum each
    assert states[-1].all()
    figure = plots_ring.ring(ranks)
    assert (
        sum(isinstance(patch, FancyArrowPatch) for ax in figure.axes for patch in ax.patches) == 2 * (ranks - 1) * ranks
    )
    assert finding(figure).endswith(f"= {2 * (ranks - 1) / ranks:.3g} times their size")


def test_a_ring_that_cannot_be_drawn_is_refused():
    with pytest.raises(InputError, match="3 or 4 ranks, not 8"):
        plots_ring.ring(8)


def with_outlier(sweep):
    """The first point's distributed steps are a hundred times as fast in two of three rounds: the median is absurd."""
    first = sweep.points[0]
    outlier = first.model_copy(update={"synced": [first.synced[0] / 100] * 2 + first.synced[2:]})
    return sweep.model_copy(update={"points": [outlier, *sweep.points[1:]]})


def test_the_panels_draw_the_model_and_the_measured_points():
    sweep = make_sweep()
    figure = FIGURES["when it pays"]()
    assert [ax.get_title() for ax in figure.axes] == ["ResNet-50", "MLP"]  # the recipe's own network first
    link = fit_link(sweep.all_reduce)
    for ax, model in zip(figure.axes, ("resnet50", "mlp"), strict=True):
        measured = {(2 * p.images, round(measured_speedup(p).value, 4)) for p in sweep.of_model(model)}
        if model == "resnet50":
            [(_, weak)] = over_all_cores(make_weak())
            measured.add((128, round(weak.value, 4)))
        assert points(ax, plots_style.ORANGE) == measured
        inside, beyond = ax.get_lines()[:2]
        assert (inside.get_linestyle(), beyond.get_linestyle()) == ("-", "--")
        assert (inside.get_xdata()[-1], beyond.get_xdata()[-1]) == pytest.approx((256, 4 * 256), rel=0.02)
        costs = ModelCosts(sweep, model)
        for line in (inside, beyond):
            expected = [costs.speedup_here(batch, 2, link) for batch in line.get_xdata()]
            assert line.get_ydata() == pytest.approx(expected)
    assert finding(figure).startswith("Predicted for ResNet-50 on 2 processes: no gain up to a global batch of 1024")


def test_through_shared_memory_a_step_costs_what_was_exposed():
    """1 ms + 0.1 ms an image and 1.005 ms of communication; one process takes 1 ms + 0.05 ms for each of its images."""
    ax = FIGURES["when it pays"]().axes[0]
    shared = ax.get_lines()[2]
    batch = shared.get_xdata()
    assert shared.get_ydata() == pytest.approx((1 + 0.05 * batch) / (1 + 0.1 * batch / 2 + 1.005), rel=1e-3)


def test_an_outlier_does_not_rule_the_scale():
    """It is not settled: it is named at the edge, and everything else stays as it was."""
    sweep = make_sweep()
    tops = [plots_cost.pay_panels(each, "mlp").axes[0].get_ylim()[1] for each in (sweep, with_outlier(sweep))]
    assert tops[0] == tops[1]
    figure = FIGURES["when it pays, with an outlier"]()
    value = measured_speedup(with_outlier(sweep).points[0]).value
    assert value > 20 * tops[0]
    assert [text.get_text() for text in figure.axes[0].texts] == [f"↑ {value:.1f}"]
    faces = [bar.lines[0].get_markerfacecolor() for bar in figure.axes[0].containers]
    assert faces == ["white", plots_style.ORANGE, plots_style.ORANGE]


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        ([], "not compared with a measurement"),
        ([(2, Interval(0.01, 0.005, 0.02))], "too high by"),
        ([(2, Interval(1.9, 1.8, 2.0)), (4, Interval(1.9, 1.8, 2.0))], "too low by"),
        (
            [(2, Interval(1.0, 0.1, 2.0)), (4, Interval(0.9, 0.1, 2.0))],
            "within the measured interval at 2 and 4 processes",
        ),
    ],
)
def test_the_prediction_gets_its_verdict(measured, words):
    figure = plots_cost.predicted_here(make_sweep(), "mlp", 64, measured)
    assert words in finding(figure)
    drawn = {(count, round(speedup.value, 4)) for count, speedup in measured}
    assert points(figure.axes[0], plots_style.ORANGE) == drawn
    assert figure.axes[0].get_lines()[0].get_xdata().tolist() == [1, 2, 3, 4]  # twice the 2 cores


def test_of_two_measurements_of_one_count_the_first_is_drawn():
    measured = [(2, Interval(0.9, 0.8, 1.1)), (2, Interval(0.5, 0.4, 0.6))]
    assert points(plots_cost.predicted_here(make_sweep(), "mlp", 64, measured).axes[0], plots_style.ORANGE) == {
        (2, 0.9)
    }


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
    assert finding(figure).endswith("backward waited 2.0 of 10.0 s per epoch")
    drawn = [list(line.get_ydata()) for line in figure.axes[2].get_lines()]
    assert drawn == [[10, 10], [0.5, 0.5], [2, 2]]


def test_shards_say_whether_images_are_shared_out():
    apart, again = np.arange(24).reshape(1, 2, 12), np.zeros((2, 2, 3), dtype=int)
    assert "no image is visited twice" in finding(plots.sampler_shards(apart, 3))
    assert finding(plots.sampler_shards(again, 3)).endswith(
        "some images are visited twice; the order is the same in each epoch"
    )
