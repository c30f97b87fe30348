"""The cost model against closed forms, and against timings that follow it exactly."""

import itertools

import numpy as np
import pytest
from helper_records import make_breakdown, make_sweep

from ddp_workbook.analysis.costmodel import (
    SETTLED_WIDTH,
    Link,
    ModelCosts,
    amdahl,
    bytes_moved,
    check_steps,
    exposed,
    fit_link,
    fit_step,
    gustafson,
    is_settled,
    measured_speedup,
    predict_step,
    serial_share,
    slowest,
)
from ddp_workbook.errors import InputError


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_all_reduce_by_counting_the_rings_messages(processes):
    """Each rank sends 2(N-1) messages of a chunk, one after another, and each costs latency + chunk / bandwidth."""
    link, size = Link(latency=5e-5, bandwidth=1e9), 12_000_000
    by_message = sum(5e-5 + size / processes / 1e9 for _ in range(2 * (processes - 1)))
    assert link.all_reduce(size, processes) == pytest.approx(by_message)
    in_three = sum(link.all_reduce(size // 3, processes) for _ in range(3))
    assert link.all_reduce(size, processes, buckets=3) == pytest.approx(in_three)


def test_bytes_near_twice_the_size_and_never_fall():
    moved = [bytes_moved(100, n) for n in range(1, 200)]
    assert moved[0] == 0 and moved[1] == 100
    assert all(b > a for a, b in itertools.pairwise(moved))
    assert 198 < moved[-1] < 200


def test_the_fit_finds_the_link_that_made_the_all_reduces():
    link = fit_link(make_sweep().all_reduce)
    assert (link.latency, link.bandwidth) == pytest.approx((20e-6, 1e9))


def test_the_line_finds_what_made_the_steps_and_is_never_negative():
    cost = fit_step([8, 32, 128], [1e-3 + 1e-4 * n for n in (8, 32, 128)], 4)
    assert (cost.fixed, cost.per_image) == pytest.approx((1e-3, 1e-4))
    assert fit_step([8, 32], [0.007, 0.032], 4).fixed == 0  # a line through both would start below zero


def test_predictions_of_exact_timings_are_exact():
    checks = check_steps(make_sweep())
    assert len(checks) == 6
    assert [check.error for check in checks] == pytest.approx([0] * 6, abs=1e-6)
    assert [check.added for check in checks] == pytest.approx([check.all_reduce for check in checks])


def test_rare_long_waits_count_as_often_as_they_come():
    """One all-reduce in ten waits 5 ms for a core. The median would hide it; a step of many collectives meets it."""
    all_reduce = make_sweep().all_reduce
    samples = [
        one.model_copy(update={"seconds": 9 * [one.seconds[0]] + [one.seconds[0] + 5e-3]}) for one in all_reduce.samples
    ]
    link = fit_link(all_reduce.model_copy(update={"samples": samples}))
    assert 2 * link.latency == pytest.approx(2 * 20e-6 + 0.5e-3, rel=0.02)


def test_a_wrong_measurement_shows_as_an_error():
    sweep = make_sweep()
    slow = sweep.points[0].model_copy(update={"synced": [2 * t for t in sweep.points[0].synced]})
    checks = check_steps(sweep.model_copy(update={"points": [slow, *sweep.points[1:]]}))
    assert checks[0].error == pytest.approx(-0.5)


def test_one_batch_size_is_too_few_for_a_line():
    sweep = make_sweep()
    with pytest.raises(InputError, match="fewer than two batch sizes of mlp"):
        ModelCosts(sweep.model_copy(update={"points": sweep.of_model("mlp")[:1]}), "mlp")


def make_point(serial, synced):
    point = make_sweep().points[0]
    return point.model_copy(update={"serial": serial, "synced": synced})


def test_a_points_speedup_is_the_median_of_its_rounds():
    """Two distributed steps a round: their means are 0.5, 1 and 2, the ratios 2, 2 and 1.5."""
    found = measured_speedup(make_point([1.0, 2.0, 3.0], [0.4, 0.6, 1.0, 1.0, 1.0, 3.0]))
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 1.5, 2.0))


def test_what_slows_a_whole_round_does_not_change_a_points_speedup():
    weather = [1.0, 3.0, 0.5]
    point = make_point([0.3 * x for x in weather], [0.2 * x for x in weather for _ in range(4)])
    found = measured_speedup(point)
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))
    assert is_settled(point)


@pytest.mark.parametrize(("width", "settled"), [(0.99 * SETTLED_WIDTH, True), (1.01 * SETTLED_WIDTH, False)])
@pytest.mark.parametrize("value", [0.2, 1.0, 3.0])
def test_a_point_is_settled_when_its_interval_is_narrow_for_its_value(value, width, settled):
    ratios = [value * (1 - width / 2), value, value * (1 + width / 2)]
    assert is_settled(make_point(ratios, [1.0] * 3)) == settled


def test_one_outlier_leaves_three_rounds_open_but_not_nine():
    """The interval of three rounds is their range; that of nine leaves out the smallest and the largest."""
    for rounds, settled in ((3, False), (9, True)):
        point = make_point([1.0] * (rounds - 1) + [4.0], [1.0] * rounds)
        assert measured_speedup(point).value == 1.0
        assert is_settled(point) == settled


def test_ranks_beyond_the_cores_take_turns():
    costs, free = ModelCosts(make_sweep(), "mlp"), Link(0.0, 1e30)
    two, eight = (predict_step(costs.rank, 16, free, n, cores=2) for n in (2, 8))
    assert eight == pytest.approx(4 * two)
    assert costs.speedup_here(64, 2, free) == pytest.approx((1e-3 + 5e-5 * 64) / (1e-3 + 1e-4 * 32))


def test_on_a_free_network_only_the_fixed_part_holds_speedup_back():
    """Without communication, the prediction is Amdahl's law with the step's fixed part as serial share."""
    costs, free, counts = ModelCosts(make_sweep(), "resnet50"), Link(0.0, 1e30), [1, 2, 8, 64]
    found = [costs.speedup_on_network(128, n, free) for n in counts]
    assert found == pytest.approx(amdahl(serial_share(costs, 128), counts))
    weak = [costs.weak_speedup_on_network(128, n, free) for n in counts]
    assert weak == pytest.approx(gustafson(serial_share(costs, 128), counts))


def test_amdahl_and_gustafson_by_hand():
    assert amdahl(0.25, [1, 4]) == pytest.approx([1, 1 / (0.25 + 0.75 / 4)])
    assert gustafson(0.25, [1, 4]) == pytest.approx([1, 3.25])


def test_exposed_is_the_difference_of_the_slowest_ranks():
    record = make_breakdown()
    slow = [step.model_copy(update={"forward": 3 * step.forward}) for step in record.no_sync[0]]
    assert exposed(record).value == pytest.approx(0.003, rel=0.05)
    record = record.model_copy(update={"no_sync": [record.no_sync[0], slow]})
    assert slowest(record.no_sync) == pytest.approx(np.array([step.total for step in slow]))
    assert exposed(record).value == pytest.approx(0.013 - 0.010 * (0.2 + 3 * 0.4 + 0.4), rel=0.05)
