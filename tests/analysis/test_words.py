"""Sentences about records: right whatever the numbers are. Each case changes the record, not the words."""

import re
from dataclasses import replace

import numpy as np
import pytest
from helper_records import make_benchmark, make_breakdown, make_run, make_sweep

from ddp_workbook.analysis.costmodel import check_steps, exposed
from ddp_workbook.analysis.statistics import mcnemar, paired_difference
from ddp_workbook.analysis.words import milliseconds, read_accuracy, read_breakdowns, read_model, read_speedups
from ddp_workbook.records.run import pack_bits
from ddp_workbook.records.timing import StepTimes


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.1406, "141 ms"),
        (0.0604, "60 ms"),
        (0.00996, "10 ms"),
        (0.0087, "8.7 ms"),
        (0.00012, "0.12 ms"),
        (0, "0.00 ms"),
    ],
)
def test_a_time_has_about_two_digits_that_count(seconds, text):
    assert milliseconds(seconds) == text


# What does averaging cost?


def breakdown(waited=0.009, slower=0.051, collectives=0.14, other=0.0, noise=0.0, steps=6, device="cpu", threads=1):
    """No averaging: 194 ms, of which backward has 120. With it: a slower backward, waiting, and seconds elsewhere."""
    noises = noise * np.array([-1.0, 1.0, -0.5, 0.5, 0.8, -0.2])[:steps]
    no_sync = [StepTimes(data=0.004, forward=0.06 + max(-x, 0), backward=0.12, optimizer=0.01) for x in noises]
    synced = [
        StepTimes(
            data=0.004, forward=0.06 + other + max(x, 0), backward=0.12 + slower + waited, optimizer=0.01,
            collectives=collectives, waited=waited,
        )
        for x in noises
    ]  # fmt: skip
    record = make_breakdown()
    machine = record.environment.model_copy(update={"device": device})
    changes = {"synced": [synced] * 2, "no_sync": [no_sync] * 2, "environment": machine, "threads": threads}
    return record.model_copy(update=changes)


def test_the_cost_of_averaging_is_read_aloud():
    text = read_breakdowns({"Gloo": breakdown(), "shared memory": breakdown(0.003, 0.015)}, alone=0.085)
    assert text == (
        "Averaging makes a step 60 ms longer (194 ms without, 254 ms with; 95 % interval of the difference 60 to 60 "
        "ms, median of 6 pairs of one launch).\n"
        "Only 9.0 ms of that is waiting after the last gradient.\n"
        "Backward itself takes 51 ms longer: the same cores that compute also send and add.\n\n"
        "The all-reduces of a step sum to 140 ms; alone they would take about 85 ms, during backward they compete for "
        "the cores.\n"
        "Several can be under way at once, and each clock also counts waiting for the other ranks.\n"
        "So the sum of the all-reduces is not the overhead: a part of it runs while backward computes.\n\n"
        "With shared memory the same averaging costs 18 ms (194 ms without, 212 ms with; 95 % interval of the "
        "difference 18 to 18 ms, median of 6 pairs of one launch): about 70 % of the cost was the way the bytes "
        "travel, not the averaging."
    )


CASES = {
    "a cost that noise hides": (
        {"noise": 0.2},
        ["The cost of averaging, ", "is not distinguishable from no cost", "backward waited 9.0 ms"],
        ["longer", "of that"],
    ),
    "steps that are shorter": (
        {"slower": -0.03, "waited": 0.01},
        ["Steps with averaging were 20 ms shorter", "something else differed"],
        ["longer (", "of that"],
    ),
    "waiting longer than the cost": (
        {"waited": 0.05, "slower": 0.0, "other": -0.02},
        ["a step 30 ms longer", "backward waited 50 ms", "longer than the whole cost", "hardly slower"],
        ["of that is waiting", "Backward itself takes"],
    ),
    "waiting is most of it": (
        {"waited": 0.05, "slower": 0.001},
        ["a step 51 ms longer", "\n50 ms of that is waiting", "hardly slower"],
        ["Only"],
    ),
    "another part of the step": ({"other": 0.06}, ["The other 60 ms are elsewhere in the step"], []),
    "a sum below the cost": ({"collectives": 0.02}, ["a step gets longer by more than that"], ["compete"]),
    "a sum like the cost": (
        {"collectives": 0.061, "noise": 0.01},
        ["the sum lies inside the interval of the cost"],
        ["is not the overhead"],
    ),
    "an accelerator": ({"device": "cuda"}, ["the all-reduces that run meanwhile slow it down"], ["cores"]),
    "too few pairs": ({"steps": 3}, ["range of the difference", "median of 3 pairs"], ["95 %"]),
}


@pytest.mark.parametrize("case", CASES)
def test_whatever_the_numbers_are_the_sentences_follow_them(case):
    changes, expected, absent = CASES[case]
    text = read_breakdowns({"Gloo": breakdown(**changes)}, alone=0.085)
    assert [part for part in expected if part not in text] == []
    assert [part for part in absent if part in text] == []


def test_idle_cores_do_not_compete():
    record = breakdown()
    machine = record.environment.model_copy(update={"cores": 8})
    assert "cores" not in read_breakdowns({"Gloo": record.model_copy(update={"environment": machine})}, alone=0.085)


def test_without_a_fit_nothing_is_said_about_the_all_reduces_alone():
    assert "alone" not in read_breakdowns({"Gloo": breakdown()})


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ({"waited": 0.0, "slower": 0.0, "noise": 0.02}, "not distinguishable from no cost"),
        ({"waited": 0.05, "slower": 0.08}, "more than with Gloo"),
        ({"noise": 0.03}, "the intervals overlap"),
        ({"waited": 0.0, "slower": -0.01}, "100 % of the cost was the way the bytes travel"),
    ],
)
def test_another_way_to_send_is_compared_by_intervals(second, expected):
    assert expected in read_breakdowns({"Gloo": breakdown(), "shared memory": breakdown(**second)})


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_those_of_the_records(case):
    record = breakdown(**CASES[case][0])
    assert milliseconds(abs(exposed(record).value)) in read_breakdowns({"Gloo": record})


# Does the cost model hold?


def sweep_with(added):
    """The exact sweep, but synchronization adds these shares of the all-reduces to the three steps of each network."""
    sweep = make_sweep()
    points = []
    for number, point in enumerate(sweep.points):
        all_reduce = point.gradient_bytes / 1e9 + 2 * 20e-6
        synced = [seconds + added[number % 3] * all_reduce for seconds in point.no_sync]
        points.append(point.model_copy(update={"synced": synced}))
    return sweep.model_copy(update={"points": points})


@pytest.mark.parametrize(
    ("added", "meaning", "use"),
    [
        ([0.6] * 3, "32, 128 images each. The rest is hidden behind computing.", "and plan with a margin"),
        ([1.0] * 3, "100 %, 100 %, 100 % of what", "and plan with a margin"),
        ([1.3] * 3, "32, 128 images each. Averaging also slows down", "and plan with a margin"),
        ([0.6, 0.75, 0.7], "60 %, 75 %, 70 % of what", "can rank choices; it is too rough to plan a budget"),
        ([0.1, 1.0, 2.5], "The model takes one share for all", "is of no use here, measure instead"),
    ],
)  # fmt: skip
def test_the_models_verdict_depends_on_its_errors(added, meaning, use):
    text = read_model(check_steps(sweep_with(added)))
    assert meaning in text
    assert use in text.splitlines()[-1]
    assert text.count("the sum is too") == 2  # networks


def test_the_verdict_names_the_worst_point():
    checks = check_steps(sweep_with([0.6, 0.75, 0.7]))
    worst = max(abs(check.corrected / check.measured.value - 1) for check in checks)
    assert f"and by {100 * worst:.0f} % at most." in read_model(checks)


# Is it faster?


def with_rates(benchmark, factor, rounds=None, **changes):
    """The benchmark with another rate of the distributed run, and with so many rounds."""
    configurations = []
    for one in benchmark.configurations:
        rates = one.images_per_second
        if rounds:
            rates = [rates[0] * (1 + 0.01 * number) for number in range(rounds)]
        if one.role == "distributed":
            rates = [factor * rate * (1 + 0.001 * number) for number, rate in enumerate(rates)]
        configurations.append(one.model_copy(update={"images_per_second": rates}))
    return benchmark.model_copy(update={"configurations": configurations, **changes})


def test_strong_scaling_is_read_aloud():
    text = read_speedups(make_benchmark(), None)
    assert "2 processes, 1 thread each: 32 images each, 64 together." in text
    assert "Over 1 process, 1 thread: 1.50 [1.50, 1.50], faster." in text
    assert "Over 1 process, 2 threads: 0.90 [0.90, 0.90], slower." in text
    assert "It reaches 0.75 [0.75, 0.75] of the rate of the same processes without communication." in text
    assert "smallest and the largest, since a 95 % interval needs 6 rounds." in text
    assert "gain" not in text
    assert "Weak scaling" not in text


@pytest.mark.parametrize(
    ("rounds", "ends"), [(6, "from the smallest to the largest"), (25, "without the 7 smallest and the 7 largest")]
)
def test_the_interval_says_what_it_is(rounds, ends):
    record = with_rates(make_benchmark(), 1, rounds)
    text = read_speedups(record, None)
    interval = f"in brackets the 95 % interval, {ends}."
    assert f"medians of {rounds} rounds, of one launch; {interval} Another launch can differ by more." in text
    text = read_speedups(record.model_copy(update={"new_processes": True}), None)
    assert f"medians of {rounds} rounds, each with new processes; {interval}" in text
    assert "launch" not in text


def test_weak_scaling_has_its_gain_and_what_it_does_not_show():
    hook = replace(make_benchmark().config, comm_hook="shared-memory")
    weak = with_rates(make_benchmark(), 1.25, 6, scaling="weak", config=hook)
    text = read_speedups(make_benchmark(), weak).split("\n\n")[-1]
    assert "Gradients were averaged through shared memory here, through the ordinary all-reduce above." in text
    gain = re.search(r"That is a gain of (\d+) % \((\d+) to (\d+) %\) over 1 process, 2 threads.", text)
    assert [int(number) for number in gain.groups()] == [13, 12, 13]
    assert "The global batch is 2 times that of a baseline, so these are throughputs" in text


# Is it as accurate?


def two_runs(lost, gained, images=10_000, right=8000):
    """Runs on so many images of two classes; the second loses some of the first one's right answers, and gains some."""
    bits = np.zeros((2, images), dtype=bool)
    bits[0, :right] = True
    bits[1, lost : right + gained] = True
    runs = []
    for kind, correct in zip(("baseline", "distributed"), bits, strict=True):
        run = make_run(kind)[0]
        dataset = run.dataset.model_copy(update={"test_images": images})
        confusion = [[int(correct.sum()), images - int(correct.sum())], [0, 0]]
        changes = {"dataset": dataset, "confusion": confusion, "test_accuracy": correct.mean()}
        runs.append(run.model_copy(update={**changes, "correct_images": pack_bits(correct)}))
    return runs, bits


@pytest.mark.parametrize(
    ("lost", "gained", "expected", "absent"),
    [
        (130, 110, ["0.20 points less accurate", "contains 0", "The whole interval lies within 1.5 points"], ["shown"]),
        (
            1200,
            1135,
            ["0.65 points less accurate", "contains 0", "a loss of up to 1.6 points is compatible"],
            ["a gain"],
        ),
        (500, 560, ["0.60 points more accurate", "contains 0", "within 1.5 points"], ["less"]),
        (100, 240, ["1.40 points more accurate", "does not contain 0", "a gain of up to 1.8 points is"], ["loss"]),
        (400, 100, ["3.00 points less accurate", "The whole interval lies beyond 1.5 points"], ["shown"]),
        (100, 100, ["as accurate as the baseline", "within 1.5 points"], ["less", "more accurate"]),
    ],
)
def test_accuracies_are_compared_by_the_whole_interval(lost, gained, expected, absent):
    runs, bits = two_runs(lost, gained)
    text = read_accuracy(*runs)
    assert [part for part in expected if part not in text] == []
    shown = text.split("\n\n")[0]
    assert [part for part in absent if part in shown] == []
    assert f"on {lost + gained:,} of them only one is right" in text
    interval = paired_difference(*bits)
    assert f"{100 * interval.low:+.2f} to {100 * interval.high:+.2f} points" in text
    p = mcnemar(*bits)
    assert (f"p = {p:.2g}" if p >= 0.001 else "p < 0.001") in text
    assert "Another seed would change both accuracies" in text
    assert "chosen on these same test images (bench/README.md)" in text


def test_few_images_leave_both_a_loss_and_a_gain_open():
    runs, _ = two_runs(20, 20, images=360, right=340)
    assert re.search(
        r"a loss of up to \d.\d points and a gain of up to \d.\d points are compatible", read_accuracy(*runs)
    )


def test_records_without_answers_by_image_say_so():
    runs, _ = two_runs(100, 90)
    text = read_accuracy(runs[0].model_copy(update={"correct_images": None}), runs[1])
    assert "do not say which images were right" in text
    assert "McNemar" not in text


def test_a_users_own_images_were_not_tuned_on():
    runs, _ = two_runs(100, 90)
    own = [run.model_copy(update={"dataset": run.dataset.model_copy(update={"name": "imagefolder"})}) for run in runs]
    assert "bench/README.md" not in read_accuracy(*own)


def test_settings_chosen_on_held_out_training_images_are_not_called_tuned_on_the_test_images():
    runs, _ = two_runs(100, 90)
    of_vit = [run.model_copy(update={"config": replace(run.config, model="vit", dropout=0.0)}) for run in runs]
    assert "bench/README.md" not in read_accuracy(*of_vit)
