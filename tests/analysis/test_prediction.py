"""Predictions for a network that the reader describes: its link, the table, and what is refused."""

from dataclasses import replace

import pytest
from helper_records import make_sweep

from ddp_workbook.analysis.costmodel import Link, ModelCosts
from ddp_workbook.analysis.prediction import COST, cost_table, network_link, predict_network
from ddp_workbook.errors import InputError
from ddp_workbook.recipes import RECIPES
from ddp_workbook.records.files import save_record


@pytest.mark.parametrize(
    ("gbit", "us", "bandwidth", "latency"),
    [(10, 50, 1.25e9, 5e-5), (1, 1000, 1.25e8, 1e-3), (0.1, 0.5, 1.25e7, 5e-7), (2.5, 500_000, 3.125e8, 0.5)],
)
def test_a_network_in_bytes_and_seconds(gbit, us, bandwidth, latency):
    link = network_link(gbit, us)
    assert (link.bandwidth, link.latency) == pytest.approx((bandwidth, latency))


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), float("-inf")])
def test_a_quantity_without_sense_is_refused(value):
    with pytest.raises(InputError, match="--bandwidth-gbit must be above 0"):
        network_link(value, 50)
    with pytest.raises(InputError, match="--latency-us must be above 0"):
        network_link(10, value)


def test_the_table_multiplies_what_it_says():
    config = RECIPES["resnet50-digits"]
    costs, link = ModelCosts(make_sweep(), "resnet50"), Link(5e-5, 1.25e9)
    table = cost_table(costs, config, 1437, link, 8, price=3.0)
    assert list(table.index) == [1, 2, 4, 8]
    step = costs.serial.seconds(16) + link.all_reduce(90_000_000, 4)
    steps = config.epochs * (1437 // 64)
    assert table.loc[4, "step (ms)"] == pytest.approx(1000 * step)
    assert table.loc[4, "speedup"] == pytest.approx(costs.serial.seconds(64) / step)
    assert table.loc[4, "efficiency (%)"] == pytest.approx(100 * costs.serial.seconds(64) / step / 4)
    assert table.loc[4, "hours"] == pytest.approx(steps * step / 3600)
    assert table.loc[4, COST] == pytest.approx(4 * 3.0 * steps * step / 3600)
    assert table["images per machine"].tolist() == [64, 32, 16, 8]
    assert COST not in cost_table(costs, config, 1437, link, 8)


def test_the_table_ends_where_a_machine_would_have_fewer_than_eight_images():
    config, costs = RECIPES["resnet50-digits"], ModelCosts(make_sweep(), "resnet50")
    table = cost_table(costs, config, 1437, Link(5e-5, 1.25e9), 4096)
    assert config.base_batch_size == 64
    assert list(table.index) == [1, 2, 4, 8]
    small = cost_table(costs, replace(config, base_batch_size=4), 1437, Link(5e-5, 1.25e9), 4096)
    assert list(small.index) == [1]  # one machine has whatever there is


def test_predict_writes_a_picture_and_says_predicted(tmp_path):
    save_record(make_sweep(), tmp_path / "batch_sweep.json")
    text = predict_network(RECIPES["resnet50-digits"], tmp_path, 10.0, 50.0, 64, None)
    assert text.startswith("predicted: resnet50-digits on 10 Gbit/s, 50 us, machines like: A processor")
    assert "all communication is added, none hidden" in text
    assert "no row for more: a machine would have fewer than 8 images of the batch" in text
    assert "no row for more" not in predict_network(RECIPES["resnet50-digits"], tmp_path, 10.0, 50.0, 8, None)
    assert (tmp_path / "prediction.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"bandwidth_gbit": 0.0}, "--bandwidth-gbit must be above 0"),
        ({"latency_us": -5.0}, "--latency-us must be above 0"),
        ({"processes": 0}, "--processes must be from 1"),
        ({"processes": 5000}, "--processes must be from 1"),
        ({"price": -1.0}, "--price must be at least 0"),
        ({"price": float("nan")}, "--price must be at least 0"),
        ({"config": RECIPES["resnet50-imagefolder"]}, "choose a recipe on one of: digits, mnist, cifar10"),
        ({}, "run notebook 04"),
    ],
)
def test_predict_refuses_in_one_line(tmp_path, changes, expected):
    options = {
        "config": RECIPES["resnet50-digits"], "run_dir": tmp_path, "bandwidth_gbit": 10.0, "latency_us": 50.0,
        "processes": 64, "price": None,
    }  # fmt: skip
    with pytest.raises(InputError, match=expected) as refusal:
        predict_network(**options | changes)
    assert "\n" not in str(refusal.value)
    assert not any(tmp_path.iterdir())
