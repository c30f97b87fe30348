"""The plan of a benchmark, its rates, and the thinning of its losses."""

from dataclasses import replace

import pytest
import torch

from ddp_workbook import devices
from ddp_workbook.measurement.benchmark import plan_configurations, probe, thin
from ddp_workbook.recipes import RECIPES

CONFIG = replace(RECIPES["mlp-digits"], dropout=0.0, precision="fp32", device="cpu")


@pytest.fixture
def cores(monkeypatch):
    """Pretend that this machine has so many logical and physical cores."""

    def pretend(count, physical=None):
        monkeypatch.setattr(devices, "available_cores", lambda: count)
        monkeypatch.setattr(devices.psutil, "cpu_count", lambda logical: count if logical else physical or count)

    return pretend


def test_the_plan_has_both_baselines_and_each_count_with_and_without_communication(cores):
    cores(4)
    plans = plan_configurations(CONFIG, [2], "strong")
    assert [(plan.name, plan.role, plan.processes, plan.threads, plan.batch_size) for plan in plans] == [
        ("1 process, 1 thread", "serial", 1, 1, 32),
        ("1 process, 4 threads", "serial", 1, 4, 32),
        ("2 processes, 2 threads each, not communicating", "no-communication", 2, 2, 16),
        ("2 processes, 2 threads each", "distributed", 2, 2, 16),
    ]
    assert not any(plan.images_per_second or plan.losses or plan.accuracies for plan in plans)


@pytest.mark.parametrize(
    ("logical", "physical", "threads"),
    [(8, 4, [1, 4, 8]), (8, 8, [1, 8]), (2, 1, [1, 2]), (1, 1, [1]), (2, 16, [1, 2])],
)
def test_physical_cores_are_a_baseline_of_their_own_where_they_are_fewer(cores, logical, physical, threads):
    cores(logical, physical)
    serial = [plan for plan in plan_configurations(CONFIG, [2], "strong") if plan.role == "serial"]
    assert [plan.threads for plan in serial] == threads
    assert [plan.name for plan in serial] == [f"1 process, {n} thread{'s' * (n > 1)}" for n in threads]


def test_on_one_core_there_is_one_baseline(cores):
    cores(1)
    plans = plan_configurations(CONFIG, [2], "strong")
    assert [plan.role for plan in plans] == ["serial", "no-communication", "distributed"]


def test_weak_scaling_gives_every_process_the_whole_batch():
    plans = plan_configurations(CONFIG, [2, 4], "weak")
    assert {(plan.processes, plan.batch_size) for plan in plans} == {(1, 32), (2, 32), (4, 32)}
    plans = plan_configurations(CONFIG, [2, 4], "strong")
    assert {(plan.processes, plan.batch_size) for plan in plans} == {(1, 32), (2, 16), (4, 8)}


@pytest.mark.parametrize(("count", "crowded"), [(1, {2, 4, 8, 64}), (4, {8, 64}), (8, {64}), (64, set()), (200, set())])
def test_more_processes_than_cores_are_called_oversubscribed(cores, count, crowded):
    cores(count)
    plans = plan_configurations(replace(CONFIG, batch_size=64), [2, 4, 8, 64], "strong")
    assert {plan.processes for plan in plans if "oversubscribed" in plan.name} == crowded
    assert all(("oversubscribed" in plan.name) == (plan.processes in crowded) for plan in plans)


def test_more_threads_than_cores_are_called_oversubscribed_too(cores):
    cores(4)
    plans = plan_configurations(replace(CONFIG, threads=3), [2], "strong")
    assert plans[-1].name == "2 processes, 3 threads each, oversubscribed"


def test_thinning_keeps_the_mean_of_whole_groups():
    assert thin([1, 3, 5, 7, 100], most=2) == [3]
    assert thin([1, 3, 5, 7], most=2) == [2, 6]
    assert thin([1.0, 2.0], most=200) == [1.0, 2.0]


def test_a_probe_finds_rates_of_training_and_of_the_faster_evaluation():
    before = torch.get_num_threads()
    config = replace(RECIPES["resnet50-digits"], threads=1, precision="fp32", batch_size=16)
    training, evaluation = probe(config, torch.device("cpu"))
    torch.set_num_threads(before)
    for rate in (training, evaluation):
        assert 0 < rate.low <= rate.value <= rate.high
    assert evaluation.value > training.value
