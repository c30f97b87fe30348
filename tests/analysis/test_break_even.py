"""The break-even: against a crossing that is known, with slow rounds planted, and in words."""

import math

import numpy as np
import pytest
from helper_map import TRUE_BREAK_EVEN, constant_point, curve_map, make_map, make_point, search
from helper_plots import finding

from ddp_workbook.analysis import plots_map
from ddp_workbook.analysis.break_even import Curve, bracket, break_even, curves, needs_no_more_rounds, read_map
from ddp_workbook.records.batch_map import NetworkMap
from ddp_workbook.records.timing import Interval

BATCHES = [16, 32, 64, 128]


def make_curve(values, reach=0.0):
    """A curve whose intervals reach so far to both sides."""
    return Curve("all cores", "allreduce", BATCHES, [Interval(value, value - reach, value + reach) for value in values])


def test_a_line_over_the_logarithm_is_inverted_exactly():
    """Speedup 0.7 + 0.1 log2(B / 16) + 0.05 crosses 1 at 16 * 2**2.5, its interval of +-0.1 one doubling apart."""
    curve = make_curve([0.75, 0.85, 0.95, 1.05], reach=0.02)
    expected = [16 * 2 ** ((1 - 0.75 + shift) / 0.1) for shift in (0, -0.02, 0.02)]
    found = break_even(curve)
    assert [found.value, found.low, found.high] == pytest.approx(expected)
    assert bracket(curve) == (64, 128)


@pytest.mark.parametrize(
    ("values", "reach", "expected"),
    [
        ([0.5, 0.6, 0.7, 0.8], 0.1, (math.inf, math.inf, math.inf)),
        ([0.5, 0.6, 0.7, 0.8], 0.3, (math.inf, 64, math.inf)),
        ([1.5, 1.6, 1.7, 1.8], 0.1, (0, 0, 0)),
        ([1.1, 1.2, 1.3, 1.4], 0.15, (0, 0, 24)),
        ([0.9, 1.2, 0.95, 1.2], 0.0, (76, 20, 76)),  # a second crossing counts, and the interval holds the first
        ([0.9, 1.06, 1.04, 1.04], 0.05, (24.7, 19.9, 30.6)),  # a gain that is shown stays shown
    ],
    ids=["never", "perhaps", "always", "perhaps always", "twice", "small gain"],
)
def test_open_ends(values, reach, expected):
    found = break_even(make_curve(values, reach))
    assert [found.value, found.low, found.high] == pytest.approx(expected, rel=0.1)
    assert found.low <= found.value <= found.high
    assert (bracket(make_curve(values, reach)) is None) == (found.value in (0, math.inf))


@pytest.mark.parametrize("spread", [0.02, 0.05])
def test_the_interval_holds_the_true_break_even_as_often_as_it_says(spread):
    """Whole searches: rounds until the points are settled, doubling until it pays, then halving around the crossing."""
    draws = np.random.default_rng(0)
    found = [break_even(curves(search(spread, draws))[0]) for _ in range(200)]
    assert np.mean([one.low <= TRUE_BREAK_EVEN <= one.high for one in found]) >= 0.93
    assert np.median([one.value for one in found]) == pytest.approx(TRUE_BREAK_EVEN, rel=0.05)
    assert np.median([one.high / one.low for one in found]) < 2


@pytest.mark.parametrize("spread", [0.02, 0.05])
def test_a_gain_that_does_not_exist_is_seldom_shown(spread):
    """Whole searches where the true speedup is 0.985 at every batch: the interval's upper end should be open."""
    draws = np.random.default_rng(0)
    found = [break_even(curves(search(spread, draws, lambda batch: 0.985))[0]) for _ in range(200)]
    assert np.mean([one.high < math.inf for one in found]) <= 0.05


def with_slow_round(seconds, number):
    return [3 * value if at == number else value for at, value in enumerate(seconds)]


def planted(network, kind, number):
    """The same rounds, but in one round of every point this configuration took three times as long."""
    points = []
    for point in network.points:
        times = {"serial": point.serial["all cores"][:6], "distributed": point.distributed["allreduce"][:6]}
        if kind:
            times[kind] = with_slow_round(times[kind], number)
        points.append(make_point(point.batch, **times))
    return network.model_copy(update={"points": points})


@pytest.mark.parametrize("kind", ["serial", "distributed"])
@pytest.mark.parametrize("seed", range(10))
def test_a_slow_round_of_six_moves_a_shown_value_by_less_than_its_interval(kind, seed):
    draws = np.random.default_rng(seed)
    network = search(0.04, draws)
    clean = curves(planted(network, None, 0))[0]
    for number in range(6):
        [slow] = curves(planted(network, kind, number))
        for before, after in zip(clean.speedups, slow.speedups, strict=True):
            assert abs(after.value - before.value) < before.high - before.low
            assert not needs_no_more_rounds(planted(network, kind, number).points[-1])  # it gets further rounds
        pays, moved = break_even(clean), break_even(slow)
        assert pays.low <= moved.value <= pays.high  # an end may be open


def test_a_round_in_which_the_whole_machine_is_slow_moves_nothing():
    network = search(0.04, np.random.default_rng(0))
    slow = planted(planted(network, "serial", 2), "distributed", 2)
    assert break_even(curves(slow)[0]) == break_even(curves(planted(network, None, 0))[0])


def test_a_slow_round_does_not_stretch_the_scale():
    network = search(0.04, np.random.default_rng(0))
    limits = []
    for kind in (None, "distributed", "serial"):
        figure = plots_map.batch_map(make_map(planted(network, kind, 2)))
        limits.append(figure.axes[0].get_ylim()[1])
    assert limits == pytest.approx([limits[0]] * 3, rel=0.1)  # one round is three times as high


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (curve_map(BATCHES, [0.75, 0.85, 0.95, 1.05]), "pay from a global batch of 91 [91, 91] images."),
        (curve_map(BATCHES, [1.1, 1.2, 1.3, 1.4]), "pay from the smallest global batch measured, 16 images."),
        (
            curve_map(BATCHES, [0.5, 0.6, 0.7, 0.8], "memory", needed_bytes=2**34, available_bytes=2**33),
            "do not pay up to a global batch of 128 images, where memory ends (twice the batch needs about 16.0 GiB, "
            "and 8.0 GiB are available).",
        ),
        (
            curve_map(BATCHES, [0.5, 0.6, 0.7, 0.8], "images"),
            "do not pay up to a global batch of 128 images, where the training images end.",
        ),
        (
            make_map(NetworkMap(model="cnn", points=[make_point(16, [0.9, 1.05, 1.2], [1.0] * 3)])),
            "may pay from a global batch of 16 images or less on, but are not shown to up to 16 images, the "
            "largest one so far.",
        ),
        (
            make_map(NetworkMap(model="cnn", points=[make_point(16, [0.8, 0.9, 1.2], [1.0] * 3)])),
            "are not shown to pay up to a global batch of 16 images, the largest one so far; nor is a loss shown.",
        ),
        (
            curve_map(BATCHES, [0.5, 1.1, 1.2, 0.98]),
            "pay at a global batch of 32 to 64 images, but are not shown to at larger ones up to 128 images, the "
            "largest one measured; at 128 images a loss is shown.",
        ),
        (
            curve_map(BATCHES, [1.3, 0.9, 0.8, 0.7]),
            "pay at a global batch of 16 images, but are not shown to at larger ones up to 128 images, the largest one "
            "measured; from 32 images on a loss is shown.",
        ),
        (
            curve_map(BATCHES, [1.3, 0.9, 1.2, 1.0]),
            "pay at a global batch of 16 and 64 images, but are not shown to at larger ones up to 128 images, the "
            "largest one measured; nor is a loss shown.",
        ),
        (
            curve_map([16, 32, 64, 256], [1.3, 1.0, 0.9, 1.0]),
            "pay at a global batch of 16 images, but are not shown to at larger ones up to 256 images, the largest one "
            "measured; from 256 images on a loss is not shown either.",
        ),
        (
            curve_map(BATCHES, [0.8, 1.0, 0.9, 0.8]),
            "are not shown to pay up to a global batch of 128 images, the largest one measured; from 64 images on a "
            "loss is shown.",
        ),
        (
            make_map(
                NetworkMap(
                    model="cnn",
                    points=[
                        constant_point(16, 1.2),
                        constant_point(32, 0.9),
                        make_point(64, [0.98, 1.05, 1.2], [1.0] * 3),
                    ],
                )
            ),
            "may pay from a global batch of 51 images on, but are not shown to up to 64 images, the largest one so "
            "far; a gain is shown at 16 images.",
        ),
    ],
    ids=[
        "between",
        "always",
        "memory",
        "images",
        "perhaps",
        "not shown",
        "gain, then a loss",
        "long loss",
        "two gains",
        "loss in between",
        "loss after none",
        "gain, then perhaps",
    ],
)
def test_the_sentence_says_what_the_interval_says(record, expected):
    start = "CNN, through Gloo, over one process with 2 threads: on this machine 2 processes "
    assert read_map(record) == start + expected
    assert read_map(record, "mlp") == ""


def test_the_figure_names_the_break_even_and_draws_it():
    figure = plots_map.batch_map(curve_map(BATCHES, [0.75, 0.85, 0.95, 1.05]))
    assert finding(figure) == (
        "When 2 processes pay over one process with 2 threads, by the best way to send: CNN from 91 images on"
    )
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in dashed] == pytest.approx([16 * 2**2.5])


@pytest.mark.parametrize(
    ("speedups", "words"),
    [
        ([0.5, 1.1, 1.2, 0.98], "CNN at 32 to 64 images, not shown at more up to 128"),
        ([0.5, 0.6, 1.0, 0.98], "CNN not shown up to 128"),
        ([1.1, 1.2, 1.3, 1.4], "CNN from 16 images on"),
    ],
)
def test_the_heading_says_what_the_sentence_says(speedups, words):
    assert finding(plots_map.batch_map(curve_map(BATCHES, speedups))).endswith(f": {words}")


def test_a_break_even_at_or_below_the_smallest_batch_stands_so_in_the_heading():
    """The medians are above 1 from the smallest batch on, which is shown from the second one on."""
    record = make_map(NetworkMap(model="cnn", points=[make_point(16, [0.95, 1.05, 1.1], [1.0] * 3),
                                                      constant_point(32, 1.2)]))  # fmt: skip
    assert "pay from a global batch of 16 images or less on, at most" in read_map(record)
    assert finding(plots_map.batch_map(record)).endswith(": CNN from 16 images or less on")
