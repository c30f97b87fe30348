"""The cost model against closed forms, and against timings that follow it exactly."""

import itertools

import numpy as np
import pytest
from helper_records import make_breakdown, make_sweep
from ddp_workbook.analysis.costmodel import Link, ModelCosts, amdahl, bytes_moved, check_steps, exposed, fit_link, fit_step, gustafson, predict_step, serial_share, slowest
from ddp_workbook.costmodel import parse_bandwidth, parse_latency
from ddp_workbook.records.files import save_record
from ddp_workbook.analysis.prediction import cost_table, predict_network

from ddp_workbook.errors import InputError
from ddp_workbook.recipes import RECIPES


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


def test_the_fit_finds_the_link_that_made_the_sweep():
    link = fit_link(make_sweep().sweep)
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
    survey = make_sweep()
    samples = [
        one.model_copy(update={"seconds": 9 * [one.seconds[0]] + [one.seconds[0] + 5e-3]})
        for one in survey.sweep.samples
    ]
    link = fit_link(survey.sweep.model_copy(update={"samples": samples}))
    assert 2 * link.latency == pytest.approx(2 * 20e-6 + 0.5e-3, rel=0.02)


def test_a_wrong_measurement_shows_as_an_error():
    survey = make_sweep()
    slow = survey.points[0].model_copy(update={"averaged": [2 * t for t in survey.points[0].averaged]})
    checks = check_steps(survey.model_copy(update={"points": [slow, *survey.points[1:]]}))
    assert checks[0].error == pytest.approx(-0.5)


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
    slow = [step.model_copy(update={"forward": 3 * step.forward}) for step in record.alone[0]]
    assert exposed(record).value == pytest.approx(0.003, rel=0.05)
    record = record.model_copy(update={"alone": [record.alone[0], slow]})
    assert slowest(record.alone) == pytest.approx(np.array([step.total for step in slow]))
    assert exposed(record).value == pytest.approx(0.013 - 0.010 * (0.2 + 3 * 0.4 + 0.4), rel=0.05)


@pytest.mark.parametrize(
    ("text", "expected"), [("10Gbit", 1.25e9), ("1 gbit/s", 1.25e8), ("100Mbit", 1.25e7), ("2.5Gbit", 3.125e8)]
)
def test_bandwidth_with_its_unit(text, expected):
    assert parse_bandwidth(text) == pytest.approx(expected)


@pytest.mark.parametrize(("text", "expected"), [("50us", 5e-5), ("1ms", 1e-3), ("0.5 s", 0.5)])
def test_latency_with_its_unit(text, expected):
    assert parse_latency(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["10", "Gbit", "10 apples", "-1Gbit", "0Gbit", "", "nanGbit", "10Gbit 5"])
def test_a_quantity_without_sense_is_refused(text):
    with pytest.raises(InputError, match="--bandwidth needs a number above 0 and a unit"):
        parse_bandwidth(text)


def test_the_table_multiplies_what_it_says():
    config = RECIPES["resnet50-digits"]
    costs, link = ModelCosts(make_sweep(), "resnet50"), Link(5e-5, 1.25e9)
    table = cost_table(costs, config, 1437, link, 8, price=3.0)
    assert list(table.index) == [1, 2, 4, 8]
    step = costs.serial.seconds(16) + link.all_reduce(90_000_000, 4)
    steps = config.epochs * (1437 // 64)
    assert table.loc[4, "step (ms)"] == pytest.approx(1000 * step)
    assert table.loc[4, "cost"] == pytest.approx(4 * 3.0 * steps * step / 3600)
    assert "cost" not in cost_table(costs, config, 1437, link, 8)


def test_predict_writes_a_picture_and_says_predicted(tmp_path):
    save_record(make_sweep(), tmp_path / "survey.json")
    text = predict_network(RECIPES["resnet50-digits"], tmp_path, "10Gbit", "50us", 64, None)
    assert text.startswith("predicted: resnet50-digits on 10Gbit/s, 50us")
    assert (tmp_path / "prediction.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"bandwidth": "10"}, "--bandwidth needs"),
        ({"latency": "50"}, "--latency needs"),
        ({"processes": 0}, "--processes must be from 1"),
        ({"price": -1.0}, "--price must be at least 0"),
        ({}, "run notebook 04"),
    ],
)
def test_predict_refuses_in_one_line(tmp_path, changes, expected):
    options = {"bandwidth": "10Gbit", "latency": "50us", "processes": 64, "price": None} | changes
    with pytest.raises(InputError, match=expected):
        predict_network(RECIPES["resnet50-digits"], tmp_path, **options)
