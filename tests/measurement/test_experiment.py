"""Experiments: small real ones on the embedded digits; their folders, continued, stopped and refused."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import psutil
import pytest
from conftest import ROOT
from helper_records import make_benchmark

from ddp_workbook.course.notebook import latest_experiment
from ddp_workbook.devices import physical_cores
from ddp_workbook.errors import InputError
from ddp_workbook.measurement import benchmark
from ddp_workbook.measurement.benchmark import empty_record, measure_together
from ddp_workbook.measurement.experiment import describe, load_experiment, metrics, run_experiment, save_experiment
from ddp_workbook.recipes import RECIPES
from ddp_workbook.records.files import load_record
from ddp_workbook.records.timing import PerformanceMetrics

# without dropout the ranks' joined batch gives the very gradient of the serial run
CONFIG = replace(RECIPES["mlp-digits"], dropout=0.0, precision="fp32", device="cpu")
FILES = [
    "serial_results.json", "parallel_2p_results.json", "performance_metrics.json", "loss_curves.png", "speedup.png",
    "efficiency.png", "training_comparison.png",
]  # fmt: skip


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Two rounds of three steps, strong scaling to two processes."""
    folder = tmp_path_factory.mktemp("experiments")
    printed = []
    record, path = run_experiment(CONFIG, [2], 2, 3, "strong", folder, printed.append)
    return record, path, printed


def test_an_experiment_measures_both_baselines_the_upper_bound_and_the_run(experiment):
    record, _, printed = experiment
    serial = ["serial"] * len({1, physical_cores(), record.environment.cores})
    assert [one.role for one in record.configurations] == [*serial, "no-communication", "distributed"]
    assert record.rounds == 2
    assert all(rate > 0 for one in record.configurations for rate in one.images_per_second)
    assert {one.global_batch for one in record.configurations} == {32}
    assert {one.images_per_round for one in record.configurations} == {3 * 32}
    assert sum("images/s" in line for line in printed) == 2 * len(record.configurations)
    assert any("left" in line for line in printed)


def test_under_strong_scaling_the_losses_are_those_of_the_serial_run(experiment):
    """Same weights, same global batches: the distributed run computes the serial one's steps."""
    record, _, _ = experiment
    serial, run = record.by_role("serial")[0], record.by_role("distributed")[0]
    for number in range(2):
        assert run.losses[number] == pytest.approx(serial.losses[number], rel=1e-4)
    assert serial.losses[0] != pytest.approx(serial.losses[1], rel=1e-6)  # each round starts from its own weights
    assert record.by_role("no-communication")[0].losses[0][2] != pytest.approx(serial.losses[0][2], rel=1e-6)


def test_benchmarks_that_are_measured_together_share_their_baselines():
    begun = [empty_record(CONFIG, [2], 2, scaling) for scaling in ("strong", "weak")]
    trained, rounds = [], []
    strong, weak = measure_together(begun, 2, lambda name, _: trained.append(name), rounds.append)
    assert strong.by_role("serial") == weak.by_role("serial")
    assert len(trained) == 2 * (len(strong.by_role("serial")) + 4)  # two rounds; both with and without communication
    assert [[record.rounds for record in records] for records in rounds] == [[1, 1], [2, 2]]
    assert weak.by_role("distributed")[0].images_per_round == 2 * strong.by_role("distributed")[0].images_per_round
    losses = [record.by_role("distributed")[0].losses for record in (strong, weak)]
    assert losses[0][0] == pytest.approx(strong.by_role("serial")[0].losses[0], rel=1e-4)
    assert losses[1][0] != pytest.approx(losses[0][0], rel=1e-6)  # of other, larger batches


@pytest.mark.parametrize("name", FILES)
def test_an_experiment_writes_its_files(experiment, name):
    assert (experiment[1] / name).stat().st_size > 300


def test_the_files_hold_the_record(experiment):
    record, path, _ = experiment
    assert load_experiment(path) == record
    assert load_record(PerformanceMetrics, path / "performance_metrics.json") == metrics(record)


def test_continuing_keeps_the_earlier_rounds(experiment):
    record, path, _ = experiment
    longer, same = run_experiment(CONFIG, [2], 3, 3, "strong", path, lambda line: None)
    assert same == path
    assert longer.rounds == 3
    for one, before in zip(longer.configurations, record.configurations, strict=True):
        assert one.images_per_second[:2] == before.images_per_second


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"steps": 4}, "its steps differs"),
        ({"scaling": "weak"}, "its scaling differs"),
        ({"config": replace(CONFIG, lr=0.5)}, "its config.lr differs"),
        ({"config": replace(CONFIG, threads=1, seed=3)}, "its config.seed differs"),
        ({"process_counts": [4]}, "its configurations differs"),
    ],
)
def test_another_experiments_folder_is_refused(experiment, changes, expected):
    options = {"config": CONFIG, "process_counts": [2], "rounds": 3, "steps": 3, "scaling": "strong"} | changes
    with pytest.raises(InputError, match=expected):
        run_experiment(**options, output_dir=experiment[1])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"process_counts": [0]}, "a process count must be from 2 to 64, not 0"),
        ({"process_counts": [2, 1000]}, "a process count must be from 2 to 64, not 1000"),
        ({"process_counts": []}, "needs at least one number"),
        ({"process_counts": [3]}, "cannot be split evenly among 3 processes"),
        ({"rounds": 0}, "--repeats must be at least 2, not 0"),
    ],
)
def test_a_senseless_experiment_is_refused_before_anything_is_written(tmp_path, changes, expected):
    options = {"config": CONFIG, "process_counts": [2], "rounds": 2, "steps": 3, "scaling": "strong"} | changes
    with pytest.raises(InputError, match=expected):
        run_experiment(**options, output_dir=tmp_path)
    assert not any(tmp_path.iterdir())


def test_the_metrics_follow_from_the_rounds():
    """Of 5 rounds with noise of median 1: 150 images/s, 64 images a step, 0.75 of the upper bound of 200."""
    [row] = metrics(make_benchmark()).process_counts
    assert (row.processes, row.threads, row.oversubscribed) == (2, 1, False)
    assert row.images_per_second.value == pytest.approx(150)
    assert row.seconds_per_step == pytest.approx(64 / 150)
    assert row.share_of_upper_bound.value == pytest.approx(0.75)
    assert [each.speedup.value for each in row.speedups] == pytest.approx([1.5, 0.9])


def test_the_metrics_in_words():
    lines = describe(metrics(make_benchmark())).splitlines()
    assert lines[0] == "resnet50-digits, strong scaling, 5 rounds; in brackets: range of 5"
    assert lines[1] == "2 processes, 1 thread each: 150 [142, 165] images/s"
    assert [line.strip() for line in lines[2:]] == [
        "1.50 [1.50, 1.50] x 1 process, 1 thread",
        "0.90 [0.90, 0.90] x 1 process, 2 threads",
        "0.75 [0.75, 0.75] of the rate without communication",
    ]


@pytest.mark.parametrize(("new_processes", "starts"), [(True, 3), (False, 1)])
def test_each_round_has_its_own_processes_where_that_is_asked_for(new_processes, starts, monkeypatch):
    started, record = [], make_benchmark().model_copy(update={"new_processes": new_processes})

    def add_round(records, *_):
        longer = [
            each.model_copy(update={"images_per_second": [*each.images_per_second, 1.0]})
            for each in records[0].configurations
        ]
        return [records[0].model_copy(update={"configurations": longer})]

    monkeypatch.setattr(benchmark, "_warmed_up_pools", lambda records: nullcontext(started.append(records[0].rounds)))
    monkeypatch.setattr(benchmark, "_add_round", add_round)
    [after] = measure_together([record], record.rounds + 3)
    assert (after.rounds, len(started)) == (record.rounds + 3, starts)


def test_after_a_stop_between_two_files_the_common_rounds_count(tmp_path):
    record = make_benchmark()
    save_experiment(record, tmp_path)
    path = tmp_path / "parallel_2p_results.json"
    content = json.loads(path.read_text())
    for one in content["configurations"]:
        for name in ("images_per_second", "losses"):
            one[name] = one[name][:4]
    path.write_text(json.dumps(content))
    assert load_experiment(tmp_path).rounds == 4


def test_the_newest_complete_experiment_of_a_recipe_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert latest_experiment("resnet50-digits") is None
    for day in ("1", "2"):
        save_experiment(make_benchmark(), tmp_path / "results" / f"experiment_{day}")
    (tmp_path / "results" / "experiment_3").mkdir()  # stopped before its first round
    folder, record = latest_experiment("resnet50-digits")
    assert folder.name == "experiment_2"
    assert record == make_benchmark()
    assert latest_experiment("cnn-mnist") is None


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a single process")
def test_an_interrupt_keeps_the_finished_rounds_and_leaves_no_process(tmp_path):
    flags = ["--recipe", "mlp-digits", "--process-counts", "2", "--repeats", "500", "--steps", "2"]
    command = [sys.executable, "-m", "ddp_workbook.cli", "bench", *flags, "--output-dir", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    seen = []
    for line in process.stdout:
        seen.append(line)
        if any(before.startswith("round 2/") for before in seen[:-1]):  # in round 3, whose processes live
            break
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 130, "".join(seen) + rest
    assert "to continue: the same command with --output-dir" in rest
    assert "Traceback" not in rest
    time.sleep(0.5)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    [folder] = tmp_path.glob("experiment_*")
    assert load_experiment(folder).rounds >= 2
