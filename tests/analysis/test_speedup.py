"""Speedup, efficiency and comparability against closed forms."""

from dataclasses import replace

import numpy as np
import pytest
from helper_records import make_benchmark, make_run

from ddp_workbook.analysis.speedup import (
    accuracy_difference,
    efficiency,
    is_equivalent,
    over_all_cores,
    require_comparable,
    speedup,
    speedup_table,
    upper_bound_shares,
    verdict,
    workers,
)
from ddp_workbook.analysis.statistics import paired_difference
from ddp_workbook.errors import InputError
from ddp_workbook.records.timing import Interval


def test_speedup_cancels_what_slows_the_whole_machine():
    weather = np.array([1.0, 0.5, 2.0, 0.7, 1.3])
    found = speedup(150 * weather, 100 * weather)
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_efficiency_is_the_share_of_the_ideal():
    found = efficiency(Interval(1.5, 1.4, 1.6), workers=4, baseline_workers=2)
    assert (found.value, found.low, found.high) == pytest.approx((0.75, 0.7, 0.8))


def test_accuracy_difference_is_paired_where_the_records_say_which_images_are_right():
    """The second run loses 20 of the 180 images that the first one has right, and gains none."""
    first, second = make_run(correct=90)[0], make_run("distributed", correct=80)[0]
    found = accuracy_difference(first, second)
    assert found == paired_difference([True] * 180 + [False] * 20, [True] * 160 + [False] * 40)
    assert found.value == pytest.approx(-0.1)


@pytest.mark.parametrize("missing", ["first", "second", "images"])
def test_accuracy_difference_of_independent_samples_by_its_formula(missing):
    """Where a record has no answers by image, or has them of other images."""
    first, second = make_run(correct=90)[0], make_run("distributed", correct=80)[0]
    if missing == "images":
        second = changed(second, "dataset", fingerprint="1" * 64)
    else:
        first, second = (
            run.model_copy(update={"correct_images": None}) if missing == name else run
            for name, run in (("first", first), ("second", second))
        )
    found = accuracy_difference(first, second)
    assert found.value == pytest.approx(-0.1)
    assert found.high - found.value == pytest.approx(1.959964 * np.sqrt((0.09 + 0.16) / 200), rel=1e-5)


@pytest.mark.parametrize(
    ("low", "high", "equal"),
    [
        (-0.010, 0.012, True),
        (-0.015, 0.015, True),
        (-0.0172, 0.0042, False),
        (0.001, 0.016, False),
        (0.02, 0.03, False),
    ],
)
def test_equal_means_that_the_whole_interval_is_inside_the_margin(low, high, equal):
    assert is_equivalent(Interval((low + high) / 2, low, high)) == equal


def test_speedup_table_names_its_baselines():
    rows = speedup_table(make_benchmark())
    assert [row.baseline for row in rows] == ["1 process, 1 thread", "1 process, 2 threads"]
    assert [row.speedup.value for row in rows] == pytest.approx([1.5, 0.9])
    assert [row.efficiency.value for row in rows] == pytest.approx([0.75, 0.9])


def test_the_last_serial_configuration_has_all_cores():
    [(processes, ratio)] = over_all_cores(make_benchmark())
    assert (processes, ratio.value) == (2, pytest.approx(0.9))


def with_physical_cores(benchmark):
    """The benchmark with a third baseline between the two, twice as fast as one thread."""
    one, *rest = benchmark.configurations
    rates = [2 * rate for rate in one.images_per_second]
    physical = one.model_copy(update={"name": "1 process, 4 threads", "threads": 4, "images_per_second": rates})
    return benchmark.model_copy(update={"configurations": [one, physical, *rest]})


def test_a_third_baseline_is_one_more_row_and_changes_no_other():
    before, after = make_benchmark(), with_physical_cores(make_benchmark())
    rows = speedup_table(after)
    assert [row.baseline for row in rows] == ["1 process, 1 thread", "1 process, 4 threads", "1 process, 2 threads"]
    assert rows[1].speedup.value == pytest.approx(0.75)
    assert [rows[0], rows[2]] == speedup_table(before)
    assert over_all_cores(after) == over_all_cores(before)
    assert upper_bound_shares(after) == upper_bound_shares(before)


@pytest.mark.parametrize(
    ("device", "accelerators", "processes", "threads", "expected"),
    [("cpu", 0, 2, 1, 2), ("cpu", 0, 4, 2, 2), ("cuda", 4, 2, 8, 2), ("cuda", 1, 4, 1, 1), ("mps", 0, 1, 1, 1)],
)
def test_workers_are_cores_or_accelerators_that_are_there(device, accelerators, processes, threads, expected):
    """The machine has two cores."""
    benchmark = make_benchmark()
    machine = benchmark.environment.model_copy(update={"device": device, "accelerator_count": accelerators})
    run = benchmark.configurations[0].model_copy(update={"processes": processes, "threads": threads})
    assert workers(run, machine) == expected


def test_share_of_the_upper_bound():
    shares = upper_bound_shares(make_benchmark())
    assert {name: share.value for name, share in shares.items()} == {"2 processes, 1 thread each": pytest.approx(0.75)}


def test_verdicts_follow_the_whole_interval():
    assert verdict(Interval(1.2, 1.1, 1.3)) == "faster"
    assert verdict(Interval(0.9, 0.8, 0.95)) == "slower"
    assert verdict(Interval(1.1, 0.9, 1.3)) == "not distinguishable"
    assert verdict(Interval(1.1, 1.0, 1.3)) == "not distinguishable"


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (Interval(1.18, 1.0004, 1.21), "faster, but the interval nearly touches 1"),
        (Interval(1.18, 1.006, 1.21), "faster"),
        (Interval(0.9, 0.8, 0.996), "slower, but the interval nearly touches 1"),
        (Interval(0.9, 0.8, 0.994), "slower"),
    ],
)
def test_a_verdict_does_not_contradict_the_printed_interval(interval, expected):
    assert verdict(interval) == expected


def test_equal_runs_are_comparable():
    require_comparable(make_run()[0], make_run("distributed")[0])


def changed(run, part, **values):
    inner = getattr(run, part)
    new = replace(inner, **values) if part == "config" else inner.model_copy(update=values)
    return run.model_copy(update={part: new})


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("config", {"epochs": 3}),
        ("config", {"lr": 0.5}),
        ("config", {"seed": 1}),
        ("config", {"augment": False}),
        ("config", {"label_smoothing": 0.2}),
        ("config", {"schedule": "step"}),
        ("config", {"base_batch_size": 32}),
        ("dataset", {"fingerprint": "1" * 64}),
        ("dataset", {"train_images": 801}),
        ("environment", {"cpu": "Another processor"}),
        ("environment", {"cores": 4}),
        ("environment", {"memory_bytes": 2**34}),
        ("environment", {"torch": "2.10"}),
        ("environment", {"device": "cuda"}),
        ("world", {"precision": "bf16"}),
        ("world", {"global_batch": 128}),
    ],
)
def test_a_difference_is_refused_by_name(part, values):
    field = f"{part}.{next(iter(values))}"
    with pytest.raises(InputError, match=field):
        require_comparable(make_run()[0], changed(make_run("distributed")[0], part, **values))


@pytest.mark.parametrize(
    "values", [{"batch_size": 8}, {"threads": 2}, {"comm_hook": "bf16"}, {"precision": "fp32"}, {"tensorboard": True}]
)
def test_how_the_work_was_split_and_sent_may_differ(values):
    require_comparable(make_run()[0], changed(make_run("distributed")[0], "config", **values))


def test_another_recipe_is_refused():
    with pytest.raises(InputError, match="recipe is 'resnet50-digits' in the baseline and 'other'"):
        require_comparable(make_run()[0], make_run("distributed")[0].model_copy(update={"recipe": "other"}))
