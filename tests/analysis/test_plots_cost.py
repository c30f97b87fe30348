"""Figures of a step's cost and of the cost model: drawn as the records and the model say, with true titles."""

from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import pytest
from helper_plots import finding, make_shared, make_weak, points, with_outlier
from helper_records import make_breakdown, make_steps, make_sweep
from matplotlib.patches import FancyArrowPatch

from ddp_workbook.analysis import plots_cost, plots_ring, plots_style
from ddp_workbook.analysis.clusters import Cluster, unit_of
from ddp_workbook.analysis.costmodel import Link, ModelCosts, exposed, fit_link, measured_speedup
from ddp_workbook.analysis.speedup import over_all_cores
from ddp_workbook.errors import InputError
from ddp_workbook.records.timing import Interval

ETHERNET = Link(50e-6, 1e9)


@pytest.fixture(autouse=True)
def close_figures():
    """Nobody looks at them."""
    yield
    plt.close("all")


def bars(ax):
    """[(row, left, width)] of the horizontal bars, in the order in which they were drawn."""
    return [(bar.get_y() + bar.get_height() / 2, bar.get_x(), bar.get_width()) for bar in ax.patches]


def test_the_cost_is_drawn_from_the_step_without_averaging():
    """Steps of 10 ms; 3 ms more through Gloo, 1 ms through shared memory: bars end at 10.05, and that plus these."""
    figure = plots_cost.sync_cost({"Gloo": make_breakdown(), "shared memory": make_shared()})
    ax = figure.axes[0]
    ends = {}
    for row, left, width in bars(ax):
        ends[row] = left + width
    added = [1000 * exposed(record).value for record in (make_breakdown(), make_shared())]
    base = 1000 * float(np.median([0.010 * x for x in (1.0, 1.02, 0.99, 1.01, 1.03, 0.98)]))
    assert added == pytest.approx([3.015, 1.005])
    assert [ends[row] for row in sorted(ends)] == pytest.approx([base, base + added[0], base, base + added[1]])
    names = ["no averaging", "Gloo", "no averaging", "shared memory"]
    assert [label.get_text() for label in ax.get_yticklabels()] == names
    words = f"adds {added[0]:.1f} ms to a step of {base:.1f} ms; with shared memory {added[1]:.2f} ms to one of "
    words += f"{base:.1f} ms"
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
    """On rank 0 the measured step ends at 13 ms, the median step under no_sync at 10.1 ms.

    2 ms come after the last gradient.
    """
    figure = plots_cost.timeline(make_breakdown())
    ax = figure.axes[0]
    rows = {}
    for row, left, width in bars(ax):
        rows.setdefault(round(row, 6), []).append((round(left, 6), round(left + width, 6)))
    drawn = [rows[row] for row in sorted(rows)]
    assert drawn[0][-1][1] == pytest.approx(10.1)
    assert (drawn[1][0][0], drawn[1][-1][1]) == pytest.approx((0, 13))
    assert drawn[2:4] == [[(6, 9), (9, 9)], [(10, 10), (10, 12)]]
    assert (drawn[4][0][0], drawn[4][-1][1]) == pytest.approx((1, 13.5))
    assert drawn[5:] == [[(6.5, 9.1), (9.1, 9.1)], [(10.5, 10.5), (10.5, 11.9)]]
    names = [label.get_text() for label in ax.get_yticklabels()]
    buckets = ["bucket 1 (last layers)", "bucket 2 (first layers)"]
    assert names[1:] == ["rank 0 computes", *buckets, "rank 1 computes", *buckets]
    texts = [text.get_text() for text in ax.texts]
    assert {"+2.9 ms", "1.91 MiB", "977 KiB"} <= set(texts)
    assert finding(figure).startswith(
        "2.0 ms of the all-reduces come after rank 0's last gradient: this step is 2.9 ms longer"
    )


def test_waiting_for_a_slow_rank_is_in_the_title():
    """Rank 1 fills its last bucket at 11.5 ms, rank 0 at 10 ms; at 12 ms both have the sum."""
    record = make_breakdown()
    first, second = record.timelines
    late = second.buckets[1].model_copy(update={"ready": 0.0115})
    slow = second.model_copy(update={"buckets": [second.buckets[0], late]})
    record = record.model_copy(update={"timelines": [first, slow]})
    assert "after rank 0's last gradient, 1.50 ms of it waiting for rank 1: this step" in finding(
        plots_cost.timeline(record)
    )


def test_the_reason_why_backward_is_slower_is_given_on_cpus_only():
    record = make_breakdown()
    hidden = record.timeline.model_copy(update={"buckets": record.timeline.buckets[:1], "marks": [0, 0, 0, 0, 0.03]})
    record = record.model_copy(update={"timelines": [hidden]})
    assert "the same cores send" in finding(plots_cost.timeline(record))
    gpu = record.environment.model_copy(update={"device": "cuda"})
    assert "cores" not in finding(plots_cost.timeline(record.model_copy(update={"environment": gpu})))


def test_the_line_of_the_all_reduce_is_the_cost_models():
    sweep = make_sweep()
    [ax] = plots_cost.all_reduce_fit(make_sweep().all_reduce).axes
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


def test_the_panels_draw_the_model_and_the_measured_points():
    sweep = make_sweep()
    figure = plots_cost.pay_panels(make_sweep(), "resnet50", make_shared(), make_weak())
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
    ax = plots_cost.pay_panels(make_sweep(), "resnet50", make_shared(), make_weak()).axes[0]
    shared = ax.get_lines()[2]
    batch = shared.get_xdata()
    assert shared.get_ydata() == pytest.approx((1 + 0.05 * batch) / (1 + 0.1 * batch / 2 + 1.005), rel=1e-3)


def test_both_ways_compute_equally_long_where_ranks_take_turns():
    """Four ranks on two cores: between the two curves, a step differs by the communication alone."""
    sweep = make_sweep(4)
    lines = plots_cost.pay_panels(sweep, "resnet50", make_shared()).axes[0].get_lines()
    batch = lines[0].get_xdata()
    gloo, shared = ((1e-3 + 5e-5 * batch) / line.get_ydata() for line in (lines[0], lines[2]))
    added = fit_link(sweep.all_reduce).all_reduce(90_000_000, 4) - exposed(make_shared()).value
    assert gloo - shared == pytest.approx(np.full(len(batch), added))


def test_an_outlier_does_not_rule_the_scale():
    """It is not settled: it is named at the edge, and everything else stays as it was."""
    sweep = make_sweep()
    tops = [plots_cost.pay_panels(each, "mlp").axes[0].get_ylim()[1] for each in (sweep, with_outlier(sweep))]
    assert tops[0] == tops[1]
    figure = plots_cost.pay_panels(with_outlier(make_sweep()), "mlp")
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
            "within the measured interval, which is too wide to test it, at 2 and 4 processes",
        ),
    ],
)
def test_the_prediction_gets_its_verdict(measured, words):
    figure = plots_cost.predicted_here(make_sweep(), "mlp", 64, measured)
    assert words in finding(figure)
    drawn = {(count, round(speedup.value, 4)) for count, speedup in measured}
    assert points(figure.axes[0], plots_style.ORANGE) == drawn
    assert figure.axes[0].get_lines()[0].get_xdata().tolist() == [1, 2, 3, 4]  # twice the 2 cores


@pytest.mark.parametrize(
    ("dataset", "batch", "network", "processes", "whole", "split"),
    [
        ("digits", 64, ETHERNET, 4096, 22, 8),  # 22 times 64 of the 1437 images
        ("digits", 64, Cluster(4, ETHERNET, ETHERNET), 4096, 20, 8),
        ("digits", 64, Cluster(64, ETHERNET, ETHERNET), 64, 22, 8),
        ("digits", 64, ETHERNET, 16, 16, 8),
        ("digits", 1024, ETHERNET, 4096, 1, 128),
        ("cifar10", 64, ETHERNET, 64, 64, 8),
        ("imagefolder", 64, ETHERNET, 64, 64, 8),
    ],
)
def test_curves_on_a_network_end_where_the_images_do(dataset, batch, network, processes, whole, split):
    costs = ModelCosts(make_sweep().model_copy(update={"dataset": dataset}), "mlp")
    figure = plots_cost.predicted_on_network(costs, batch, network, processes, "predicted: a recipe")
    strong, weak, _, ideal = figure.axes[0].get_lines()
    assert [line.get_xdata()[-1] for line in (strong, weak, ideal)] == [split, whole, max(split, whole)]
    assert f"{split} {unit_of(network)} split the batch" in finding(figure)
    assert f"when {whole} have a whole batch each" in finding(figure)


def test_of_two_measurements_of_one_count_the_first_is_drawn():
    measured = [(2, Interval(0.9, 0.8, 1.1)), (2, Interval(0.5, 0.4, 0.6))]
    assert points(plots_cost.predicted_here(make_sweep(), "mlp", 64, measured).axes[0], plots_style.ORANGE) == {
        (2, 0.9)
    }
