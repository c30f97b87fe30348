"""Activations against a sum by hand, and their prediction at another batch size against a measurement."""

from dataclasses import replace

import pytest
import torch
from helper_tries import IN_FULL
from torch import nn

from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import Precision
from ddp_workbook.measurement.step_memory import (
    SHARDINGS,
    activation_bytes,
    measure_sharding,
    measure_step,
    predict_activations,
    predict_step,
    time_sharding,
)
from ddp_workbook.recipes import RECIPES
from ddp_workbook.specs import MODELS
from ddp_workbook.training.models import build_model

FP32 = Precision(torch.device("cpu"), "fp32")


def batch(images):
    return torch.randn(images, 1, 28, 28), torch.zeros(images, dtype=torch.int64)


def test_the_activations_of_two_layers_by_hand():
    """Kept: the input of each linear layer (the hidden one is also ReLU's result), log-probabilities, labels, and the
    loss's sum of weights. In bytes: 4 a value, 8 a label."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 10))
    n = 6
    assert activation_bytes(model, *batch(n), FP32) == 4 * (784 + 50 + 10) * n + 8 * n + 4


@pytest.mark.parametrize("name", MODELS)
def test_activations_grow_with_the_images(name):
    """From batches of 4 and 8 images to one of 16. An LSTM lays out very small batches in another way."""
    config = TrainConfig(model=name, dataset="digits", image_size=28)
    model = build_model(config, 10).train()
    measured = {}
    for n in (4, 8, 16):
        images, labels = batch(n)
        measured[n] = activation_bytes(model, images.expand(n, config.channels, 28, 28), labels, FP32)
    predicted = predict_activations((4, measured[4]), (8, measured[8]), 16)
    assert predicted == pytest.approx(measured[16], rel=0.005)
    assert measured[16] > 1.9 * measured[8]


def test_a_step_by_hand_and_by_its_prediction():
    """An MLP of 784-512-256-128-10 with Adam: its state is two values for each parameter, and a step number each."""
    config = replace(RECIPES["mlp-mnist"], batch_size=32)
    parameters = 784 * 512 + 512 + 512 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10
    measured, predicted = measure_step(config), predict_step(config)
    assert measured[:3] == (4 * parameters, 4 * parameters, 8 * parameters + 8 * 4)
    assert predicted[:3] == (4 * parameters, 4 * parameters, 8 * parameters)
    assert predicted.activations == pytest.approx(measured.activations, rel=0.005)
    assert measured.total == sum(measured)


@pytest.mark.skipif(not IN_FULL, reason="for labs/04_memory.ipynb: with FAULTS=full")
def test_each_way_of_sharding_is_timed_in_each_round():
    config = replace(RECIPES["mlp-digits"], batch_size=8, device="cpu")
    seconds = time_sharding(config, ranks=2, rounds=3, steps=2)
    assert {shard: len(values) for shard, values in seconds.items()} == dict.fromkeys(SHARDINGS, 3)
    assert all(value > 0 for values in seconds.values() for value in values)


@pytest.mark.skipif(not IN_FULL, reason="for bench/sharding.py: with FAULTS=full")
def test_ranks_are_measured_for_each_way_of_sharding():
    config = replace(RECIPES["mlp-digits"], batch_size=8, device="cpu", precision="fp32")
    measured = measure_sharding(config, [1, 2])
    assert set(measured) == {("none", 1), ("none", 2), ("optimizer", 2), ("full", 2)}
    [alone], plain, full = measured["none", 1], measured["none", 2], measured["full", 2]
    assert alone.traffic is None
    assert (alone.parameters, alone.optimizer) == (plain[0].parameters, plain[0].optimizer)
    assert plain[0].traffic.collectives == {"all_reduce": alone.parameters}
    assert sum(rank.parameters for rank in full) == pytest.approx(alone.parameters, rel=0.01)
