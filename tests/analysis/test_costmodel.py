"""The cost model against closed forms, and against timings that follow it exactly."""

import itertools

import numpy as np
import pytest
from helper_records import make_breakdown, make_sweep
from scipy import stats

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
    is_settled,
    judge,
    measured_speedup,
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
    for check in checks:
        for error in (check.error, check.corrected_error):
            assert (error.value, error.low, error.high) == pytest.approx((0, 0, 0), abs=1e-6)
        assert check.added.value == pytest.approx(check.all_reduce)
        assert check.exposed_share == pytest.approx(1)


def with_hidden(sweep, shares):
    """The same sweep, but synchronization adds only these shares of each point's all-reduces."""
    points = []
    for point, share in zip(sweep.points, shares, strict=True):
        all_reduce = point.gradient_bytes / 1e9 + 2 * 20e-6
        synced = [step + share * all_reduce for step in point.no_sync]
        points.append(point.model_copy(update={"synced": synced}))
    return sweep.model_copy(update={"points": points})


def test_a_hidden_part_makes_the_sum_too_long_and_the_share_corrects_it():
    """40 % of every all-reduce is hidden. The point that is checked has no part in the share."""
    checks = check_steps(with_hidden(make_sweep(), [0.6] * 6))
    for check in checks:
        step = check.measured.value
        assert check.added.value == pytest.approx(0.6 * check.all_reduce)
        assert check.error.value == pytest.approx(0.4 * check.all_reduce / step)
        assert check.exposed_share == pytest.approx(0.6)
        assert check.corrected == pytest.approx(step)
        assert check.corrected_error.value == pytest.approx(0, abs=1e-6)


def test_a_share_is_fitted_on_the_other_batch_sizes_of_the_same_network_only():
    checks = check_steps(with_hidden(make_sweep(), [0.2, 0.6, 1.0, 0.5, 0.5, 0.5]))
    assert [check.exposed_share for check in checks] == pytest.approx([0.8, 0.6, 0.4, 0.5, 0.5, 0.5])
    one = checks[0]  # too long by the difference of its own share to that of the others
    assert one.corrected_error.value == pytest.approx((0.8 - 0.2) * one.all_reduce / one.measured.value)


def test_communication_that_slows_down_the_computing_has_a_share_above_one():
    costs = ModelCosts(with_hidden(make_sweep(), [1.3] * 6), "resnet50")
    assert costs.exposed_share.value == pytest.approx(1.3)
    link = fit_link(make_sweep().all_reduce)
    step = costs.rank.seconds(16) + 1.3 * link.all_reduce(90_000_000, 2)
    assert costs.speedup_here(32, 2, link) == pytest.approx(costs.serial.seconds(32) / step)


def test_nothing_is_hidden_on_a_network_that_nobody_measured():
    costs, link = ModelCosts(with_hidden(make_sweep(), [0.5] * 6), "resnet50"), Link(5e-5, 1e9)
    step = costs.serial.seconds(32) + link.all_reduce(90_000_000, 4)
    assert costs.speedup_on_network(128, 4, link) == pytest.approx(costs.serial.seconds(128) / step)


def test_a_verdict_counts_and_averages_the_errors():
    first, second = judge(check_steps(with_hidden(make_sweep(), [0.2, 0.6, 1.0, 1.1, 1.1, 1.1])))
    checks = check_steps(with_hidden(make_sweep(), [0.2, 0.6, 1.0, 1.1, 1.1, 1.1]))[:3]
    errors = [check.predicted / check.measured.value - 1 for check in checks]
    corrected = [check.corrected / check.measured.value - 1 for check in checks]
    assert (first.model, second.model) == ("mlp", "resnet50")
    assert first.mean_error == pytest.approx(np.mean(errors))
    assert first.mean_corrected_error == pytest.approx(np.mean(corrected))
    assert first.mean_size_of_corrected_error == pytest.approx(np.mean(np.abs(corrected)))
    assert (second.positive, second.negative) == (0, 3)
    assert second.text.startswith("ResNet-50: the sum is too short in 3 of 3 points (mean error -")
    assert second.text.endswith("With the exposed share fitted on the other batch sizes: mean error +0 %, mean size of "
                                "the errors 0 %.")  # fmt: skip


def test_the_interval_of_an_error_is_that_of_the_paired_rounds():
    """Two kinds of steps that rise and fall together: their difference is far surer than either."""
    weather = np.array([1.0, 1.3, 0.8, 1.1, 0.9, 1.2])
    point = make_sweep().points[0]
    add = point.gradient_bytes / 1e9 + 2 * 20e-6
    no_sync, synced = 2e-3 * weather, 2e-3 * weather + add * np.array([1.0, 1.01, 0.99, 1.0, 1.01, 0.99])
    noisy = point.model_copy(update={"serial": [1.0] * 6, "no_sync": no_sync.tolist(), "synced": synced.tolist()})
    sweep = make_sweep()
    check = check_steps(sweep.model_copy(update={"points": [noisy, *sweep.points[1:]]}))[0]
    judged = stats.ttest_1samp(synced - no_sync, 0).confidence_interval(0.95)
    assert (check.added.low, check.added.high) == pytest.approx((judged.low, judged.high))
    assert check.measured.high - check.measured.low > 10 * (check.added.high - check.added.low)
    width = check.error.high - check.error.low
    assert width == pytest.approx((check.added.high - check.added.low) / check.measured.value, rel=0.1)


def test_noise_of_the_all_reduces_widens_the_error_but_not_the_corrected_one():
    """The share is relative to the same all-reduces, so that what the fit gets wrong cancels."""
    sweep = make_sweep()
    samples = [
        one.model_copy(update={"seconds": [factor * second for second in one.seconds]})
        for one, factor in zip(sweep.all_reduce.samples, (1.1, 0.9, 1.05), strict=True)
    ]
    noisy = sweep.model_copy(update={"all_reduce": sweep.all_reduce.model_copy(update={"samples": samples})})
    check = check_steps(noisy)[3]
    assert check.error.high - check.error.low > 0.1
    assert check.corrected_error.high - check.corrected_error.low == pytest.approx(0, abs=1e-9)
    share = ModelCosts(noisy, "resnet50").exposed_share
    assert share.high - share.low > 0.1


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
    assert checks[0].error.value == pytest.approx(-0.5)


def test_one_batch_size_is_too_few_for_a_line():
    sweep = make_sweep()
    with pytest.raises(InputError, match="fewer than two batch sizes of mlp"):
        ModelCosts(sweep.model_copy(update={"points": sweep.of_model("mlp")[:1]}), "mlp")
    with pytest.raises(InputError, match="fewer than two batch sizes of mlp"):
        check_steps(sweep.model_copy(update={"points": [sweep.points[0], sweep.points[3], sweep.points[4]]}))


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


@pytest.mark.parametrize("measured", [2, 4])
def test_ranks_beyond_the_cores_take_turns(measured):
    """As many as were measured, and others; whether or not those of the sweep took turns themselves."""
    costs, free = ModelCosts(make_sweep(measured), "mlp"), Link(0.0, 1e30)
    for processes, turns in ((2, 1), (3, 1.5), (4, 2), (8, 4)):
        expected = (1e-3 + 5e-5 * 64) / (turns * (1e-3 + 1e-4 * 64 / processes))
        assert costs.speedup_here(64, processes, free) == pytest.approx(expected)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("processes", [2, 4])
def test_a_speedup_that_was_measured_exactly_is_predicted_exactly(processes, threads):
    """On two cores, with ranks that take turns, and with more threads than cores: the sweep has felt that already."""
    sweep = make_sweep(processes).model_copy(update={"threads": threads})
    link = fit_link(sweep.all_reduce)
    for point in sweep.points:
        found = ModelCosts(sweep, point.model).speedup_here(processes * point.images, processes, link)
        assert found == pytest.approx(measured_speedup(point).value)


def test_more_threads_than_cores_leave_one_rank_at_a_time():
    sweep, free = make_sweep().model_copy(update={"threads": 4}), Link(0.0, 1e30)
    costs = ModelCosts(sweep, "mlp")
    assert costs.speedup_here(64, 4, free) == pytest.approx((1e-3 + 5e-5 * 64) / (2 * (1e-3 + 1e-4 * 16)))


def test_on_a_free_network_only_the_fixed_part_holds_speedup_back():
    """Without communication, the prediction is Amdahl's law with the step's fixed part as serial share."""
    costs, free, counts = ModelCosts(make_sweep(), "resnet50"), Link(0.0, 1e30), [1, 2, 8, 64]
    found = [costs.speedup_on_network(128, n, free) for n in counts]
    assert found == pytest.approx(amdahl(serial_share(costs, 128), counts))


def test_weak_scaling_is_throughput_of_whole_batches():
    """N machines do in one step what one machine does in N steps; what is lost is the all-reduce."""
    costs, free, slow = ModelCosts(make_sweep(), "resnet50"), Link(0.0, 1e30), Link(1e-3, 1e9)
    assert [costs.weak_speedup_on_network(128, n, free) for n in (1, 8, 64)] == pytest.approx([1, 8, 64])
    step = costs.serial.seconds(128)
    efficiency = costs.weak_speedup_on_network(128, 64, slow) / 64
    assert efficiency == pytest.approx(step / (step + slow.all_reduce(90_000_000, 64)))


def test_a_predicted_speedup_has_the_noise_of_all_its_points():
    """Only the serial steps of one point vary: the interval is that of the line through it."""
    sweep, link = make_sweep(), fit_link(make_sweep().all_reduce)
    exact = ModelCosts(sweep, "mlp").speedup_interval(64, 2, link)
    assert (exact.low, exact.high) == pytest.approx((exact.value, exact.value))
    first = sweep.points[0]
    point = first.model_copy(update={"serial": [factor * first.serial[0] for factor in (0.9, 1.0, 1.1)]})
    costs = ModelCosts(sweep.model_copy(update={"points": [point, *sweep.points[1:]]}), "mlp")
    found = costs.speedup_interval(64, 2, link)
    assert found.value == costs.speedup_here(64, 2, link)
    assert 0 < found.low < found.value < found.high
    one = costs.speedup_interval(64, 1, link)
    assert (one.value, one.low, one.high) == (1, 1, 1)


@pytest.mark.filterwarnings("error")
def test_two_rounds_are_enough_for_an_interval():
    """Each is left out once: Student's t with one degree of freedom, over half of the distance between the two."""
    sweep, link = make_sweep(), fit_link(make_sweep().all_reduce)

    def costs_with(*factors):
        first = sweep.points[0]
        points = [each.model_copy(update={"serial": each.serial[:2], "synced": each.synced[:2],
                                          "no_sync": each.no_sync[:2]}) for each in sweep.points]  # fmt: skip
        points[0] = points[0].model_copy(update={"serial": [factor * first.serial[0] for factor in factors]})
        return ModelCosts(sweep.model_copy(update={"points": points}), "mlp")

    found = costs_with(0.9, 1.1).speedup_interval(64, 2, link)
    slow, fast = (costs_with(factor, factor).speedup_here(64, 2, link) for factor in (1.1, 0.9))
    reach = stats.t.ppf(0.975, 1) * np.log(slow / fast) / 2
    assert np.log([found.low, found.high]) - np.log(found.value) == pytest.approx([-reach, reach])


def test_amdahl_by_hand():
    assert amdahl(0.25, [1, 4]) == pytest.approx([1, 1 / (0.25 + 0.75 / 4)])


def test_exposed_is_the_difference_of_the_slowest_ranks():
    record = make_breakdown()
    slow = [step.model_copy(update={"forward": 3 * step.forward}) for step in record.no_sync[0]]
    assert exposed(record).value == pytest.approx(0.003, rel=0.05)
    record = record.model_copy(update={"no_sync": [record.no_sync[0], slow]})
    assert slowest(record.no_sync) == pytest.approx(np.array([step.total for step in slow]))
    assert exposed(record).value == pytest.approx(0.013 - 0.010 * (0.2 + 3 * 0.4 + 0.4), rel=0.05)
