"""Predictions for a network that the reader describes: its link, the table, and what is refused."""

from dataclasses import replace

import pytest
from helper_records import make_sweep

from ddp_workbook.analysis.clusters import Cluster
from ddp_workbook.analysis.costmodel import Link, ModelCosts
from ddp_workbook.analysis.prediction import COST, cost_table, network_link, predict_network, weak_table
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


def test_the_table_of_a_cluster_has_whole_nodes_and_their_price():
    config, costs = replace(RECIPES["resnet50-digits"], base_batch_size=512), ModelCosts(make_sweep(), "resnet50")
    cluster = Cluster(6, Link(3e-6, 4e10), Link(5e-5, 1.25e9))
    table = cost_table(costs, config, 1437, cluster, 48, price=3.0)
    assert (table.index.name, list(table.index)) == ("processes", [1, 2, 4, 6, 12, 24, 48])
    step = costs.serial.seconds(512 / 24) + cluster.all_reduce(90_000_000, 24)
    assert table.loc[24, "step (ms)"] == pytest.approx(1000 * step)
    assert table.loc[24, COST] == pytest.approx(4 * 3.0 * table.loc[24, "hours"])
    assert table.loc[4, COST] == pytest.approx(3.0 * table.loc[4, "hours"])


def test_a_whole_batch_each_keeps_the_epochs_by_the_linear_scaling_rule():
    config, link = RECIPES["resnet50-digits"], Link(5e-5, 1.25e9)
    costs = ModelCosts(make_sweep(), "resnet50")
    table = weak_table(costs, config, 1437, link, 4096, price=2.0)
    assert list(table.index) == [1, 2, 4, 8, 16]  # 32 times 64 images are more than 1437
    row = table.loc[8]
    step = costs.serial.seconds(64) + link.all_reduce(90_000_000, 8)
    assert (row["global batch"], row["learning rate"]) == pytest.approx((512, 8 * config.lr))
    assert row["epochs"] == config.epochs
    assert row["speedup"] == pytest.approx(8 * costs.serial.seconds(64) / step)
    assert row["hours"] == pytest.approx(config.epochs * (1437 // 512) * step / 3600)
    assert row[COST] == pytest.approx(8 * 2.0 * row["hours"])


def test_a_noise_scale_follows_the_law_of_mccandlish():
    """(S / S_min - 1)(E / E_min - 1) = 1 for any global batch; the base batch keeps the recipe's epochs."""
    config, noise = RECIPES["resnet50-digits"], 300.0
    table = weak_table(ModelCosts(make_sweep(), "mlp"), config, 1437, Link(5e-5, 1e9), 16, noise_scale=noise)
    assert table.loc[1, "epochs"] == config.epochs
    fewest_images = config.epochs * noise / (64 + noise)  # the limit of small batches
    fewest_steps = config.epochs / (64 + noise)  # that of large ones, for one image of training set
    for _, row in table.iterrows():
        steps = row["epochs"] / row["global batch"]
        assert (steps / fewest_steps - 1) * (row["epochs"] / fewest_images - 1) == pytest.approx(1)


def test_predict_says_where_the_batch_has_its_limits(tmp_path):
    save_record(make_sweep(), tmp_path / "batch_sweep.json")
    text = predict_network(RECIPES["resnet50-mnist"], tmp_path, 10.0, 50.0, 4096, None)
    assert "epochs and learning rate by the linear scaling rule" in text
    assert "from 128 on, the batch is above the 8192 images" in text
    assert "the global batch would be larger than the 60000 training images" in text
    few = predict_network(RECIPES["resnet50-digits"], tmp_path, 10.0, 50.0, 4, None, noise_scale=500)
    assert "8192" not in few and "by a noise scale of 500 images" in few
    cluster = {"node_size": 4, "intra_gbit": 1200.0, "intra_us": 3.0}
    text = predict_network(RECIPES["resnet50-digits"], tmp_path, 10.0, 50.0, 4096, None, **cluster)
    assert "10 Gbit/s, 50 us between nodes of 4 with 1200 Gbit/s, 3 us inside" in text.splitlines()[0]


def test_predict_says_what_an_accelerator_hides(tmp_path):
    sweep = make_sweep()
    machine = sweep.environment.model_copy(update={"device": "cuda", "accelerator_count": 2})
    save_record(sweep.model_copy(update={"environment": machine}), tmp_path / "batch_sweep.json")
    text = predict_network(RECIPES["resnet50-digits"], tmp_path, 10.0, 50.0, 8, None)
    assert "all communication is added, but what backward hides (67% of a step's computing)" in text


def test_predict_writes_a_picture_and_says_predicted(tmp_path):
    save_record(make_sweep(), tmp_path / "batch_sweep.json")
    text = predict_network(RECIPES["resnet50-digits"], tmp_path, 10.0, 50.0, 64, None)
    assert text.startswith("predicted: resnet50-digits on 10 Gbit/s, 50 us, machines like: A processor")
    assert "all communication is added, none hidden" in text
    assert "no row for more: a machine would have fewer than 8 images of the batch" in text
    assert "no row for more" not in predict_network(RECIPES["resnet50-digits"], tmp_path, 10.0, 50.0, 8, None)
    assert (tmp_path / "prediction.png").stat().st_size > 10_000


@pytest.mark.parametrize(("batch", "expected"), [(40, ["machine"]), (48, []), (300, ["global"]), (6, ["machine"])])
def test_a_table_that_ends_early_says_why_in_nodes_of_any_size(tmp_path, batch, expected):
    """One node of 6: 40 images give 6.7 each, and 6 batches of 300 are more than the 1437 images."""
    save_record(make_sweep(), tmp_path / "batch_sweep.json")
    config = replace(RECIPES["resnet50-digits"], base_batch_size=batch)
    text = predict_network(config, tmp_path, 10.0, 50.0, 6, None, node_size=6, intra_gbit=1200.0, intra_us=3.0)
    notes = [line for line in text.splitlines() if line.startswith("no row for more")]
    assert [note.split()[5] for note in notes] == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"bandwidth_gbit": 0.0}, "--bandwidth-gbit must be above 0"),
        ({"latency_us": -5.0}, "--latency-us must be above 0"),
        ({"processes": 0}, "--processes must be from 1"),
        ({"processes": 5000}, "--processes must be from 1"),
        ({"node_size": 0}, "--node-size must be at least 1"),
        ({"node_size": 6, "intra_gbit": 1.0, "intra_us": 1.0}, "--node-size 6 does not divide --processes 64"),
        ({"node_size": 8}, "--node-size 8 needs --intra-gbit and --intra-us"),
        ({"node_size": 8, "intra_gbit": 100.0}, "--node-size 8 needs --intra-gbit and --intra-us"),
        ({"node_size": 8, "intra_gbit": 0.0, "intra_us": 1.0}, "--intra-gbit must be above 0"),
        ({"node_size": 8, "intra_gbit": 100.0, "intra_us": -1.0}, "--intra-us must be above 0"),
        ({"intra_gbit": 100.0}, "give --node-size too"),
        ({"noise_scale": 0.0}, "--noise-scale must be above 0"),
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
