"""Published results beside predictions: the networks' layers against torchvision, the fits, the page in bench/."""

import importlib.util

import pytest
import torch
import torchvision
from conftest import ROOT

from ddp_workbook.analysis.clusters import exposed_seconds, fill_buckets
from ddp_workbook.analysis.fits import Link
from ddp_workbook.analysis.published import LAYERS, OLD_TABLE, ROWS, SETUPS, between_resnets, gradient_bytes, work
from ddp_workbook.analysis.published_check import (
    TARGET,
    Known,
    compare,
    fit_setup,
    judge_old_table,
    most_saved_by_overlap,
    predict_row,
)


@pytest.mark.parametrize(
    ("name", "builder", "pixels"),
    [("ResNet-50", "resnet50", 224), ("ResNet-101", "resnet101", 224), ("ResNet-152", "resnet152", 224),
     ("VGG-16", "vgg16", 224), ("Inception V3", "inception_v3", 299)],
)  # fmt: skip
def test_the_layers_are_those_of_torchvision(name, builder, pixels):
    """Without weights, on the meta device: parameters, and the multiply-adds of convolutions and linear layers."""
    options = {"aux_logits": False, "init_weights": False} if builder == "inception_v3" else {}
    with torch.device("meta"):
        model = getattr(torchvision.models, builder)(**options).eval()
    counted = []

    def count(layer, _, output):
        counted.append(layer.weight.numel() * output[0, 0].numel() if output.dim() == 4 else layer.weight.numel())

    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(count)
    model(torch.empty(1, 3, pixels, pixels, device="meta"))
    assert gradient_bytes(name) == 4 * sum(parameter.numel() for parameter in model.parameters())
    assert work(name) == pytest.approx(sum(counted) / 1e6, rel=1e-3)


def test_bert_base_has_its_110_million_parameters():
    assert gradient_bytes("BERT-Base") / 4e6 == pytest.approx(110, rel=0.01)


def test_a_resnet_between_two_measured_ones():
    assert 1 / 219.0 < 1 / between_resnets("ResNet-101") < 1 / 91.8
    assert between_resnets("ResNet-50") == pytest.approx(219.0)
    assert between_resnets("ResNet-152") == pytest.approx(91.8)


def test_every_cluster_with_an_unknown_has_one_fitted_row_which_is_met():
    for name, setup in SETUPS.items():
        fitted = [row for row in ROWS if row.setup == name and row.fitted]
        assert len(fitted) == (setup.unknown is not None)
        for row in fitted:
            assert predict_row(row, fit_setup(name)) == pytest.approx(row.published)
    assert fit_setup("goyal") == Known()
    assert 0.5 < fit_setup("horovod").speed < 1
    assert 0 < fit_setup("dlperf").payload < 1


def test_the_other_rows_are_within_the_target():
    tested = [each for each in compare() if not each.row.fitted]
    assert {each.row.setup for each in tested} == set(SETUPS)
    assert all(abs(each.error) <= TARGET for each in tested)
    assert {each.row.model for each in tested} <= set(LAYERS)


def test_overlap_saves_most_where_the_all_reduces_last_as_long_as_backward():
    buckets = fill_buckets([(1.0, 1.0)], 2 / 3, 1000)
    together = fill_buckets([(1.0, 1.0)], 0.0, 1000)

    def saved(factor):
        link = Link(0.0, 3 / 2 / factor)
        return 1 - (1 + exposed_seconds(buckets, link, 2)) / (1 + exposed_seconds(together, link, 2))

    assert saved(1) == pytest.approx(most_saved_by_overlap(), abs=1e-3)
    assert saved(1) > saved(0.9) > saved(0.5) and saved(1) > saved(1.1) > saved(2)


def test_the_old_table_by_hand():
    """Strong scaling with two GPUs: 213 s over 87.5 s + 38 s. Weak: a step of 213 s / 391 lasts 2 / 1.78 times that."""
    verdict = judge_old_table(OLD_TABLE)
    first = verdict.rows[0]
    assert first.strong_bound == pytest.approx(213 / 125.5)
    assert first.added == pytest.approx(213 / 391 * (2 / 1.78 - 1))
    assert all(row.published > row.strong_bound for row in verdict.rows)
    for row in verdict.rows:
        added = verdict.plain.all_reduce(94e6, row.processes, 4)
        assert row.plain == pytest.approx(row.processes / (1 + added / (213 / 391)))
        assert abs(row.plain / row.published - 1) < 0.05 and abs(row.overlapped / row.published - 1) < 0.05


def test_a_table_made_by_a_link_gives_that_link():
    link, step = Link(2e-4, 2e9), 213 / 391
    speedups = tuple((n, n * step / (step + link.all_reduce(94e6, n, 4))) for n in (2, 4, 8))
    verdict = judge_old_table(type(OLD_TABLE)(speedups=speedups))
    assert (verdict.plain.latency, verdict.plain.bandwidth) == pytest.approx((2e-4, 2e9))
    assert [row.plain for row in verdict.rows] == pytest.approx([row.published for row in verdict.rows])


def test_the_page_says_what_the_model_says():
    place = importlib.util.spec_from_file_location("clusters", ROOT / "bench" / "clusters.py")
    script = importlib.util.module_from_spec(place)
    place.loader.exec_module(script)
    assert script.PAGE.read_text(encoding="utf-8") == script.page()
