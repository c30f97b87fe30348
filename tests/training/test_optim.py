"""Optimizer and learning rate against torch's own."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import Precision
from ddp_workbook.training.loop import train_step
from ddp_workbook.training.optim import build_optimizer, build_schedule, last_rate, learning_rate_factor

FP32 = Precision(torch.device("cpu"), "fp32")


def small_model(classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(256, classes))


def rates(config, steps_per_epoch):
    steps = config.epochs * steps_per_epoch
    return [learning_rate_factor(step, steps_per_epoch, config) for step in range(steps)]


@pytest.mark.parametrize(("epochs", "steps", "warmup"), [(10, 390, 0.3), (14, 22, 0.15), (3, 7, 0.5), (5, 1, 0.4)])
def test_one_cycle_equals_torchs(epochs, steps, warmup):
    config = TrainConfig(epochs=epochs, warmup=warmup)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    judge = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=epochs * steps, pct_start=warmup, cycle_momentum=False
    )
    expected = []
    for _ in range(epochs * steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < epochs * steps:
            judge.step()
    assert rates(config, steps) == pytest.approx(expected, abs=1e-7)


def test_step_schedule_equals_torchs():
    config = TrainConfig(epochs=7, schedule="step", step_epochs=3, step_gamma=0.5, warmup=0)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    judge = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)
    found = rates(config, 4)
    for epoch in range(7):
        assert found[4 * epoch : 4 * epoch + 4] == pytest.approx([optimizer.param_groups[0]["lr"]] * 4)
        optimizer.step()
        judge.step()


def test_constant_schedule_climbs_in_a_straight_line_and_stays():
    found = rates(TrainConfig(epochs=2, schedule="constant", warmup=0.5), 10)
    assert found[0] == pytest.approx(1 / 25)
    climb = [b - a for a, b in itertools.pairwise(found[:10])]
    assert climb == pytest.approx([climb[0]] * 9)
    assert found[9:] == [1.0] * 11


@pytest.mark.parametrize("schedule", ["onecycle", "step", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 0.99])
def test_no_schedule_leaves_its_range(schedule, warmup):
    for epochs, steps in ((1, 1), (1, 2), (3, 5)):
        assert all(0 < r <= 1 for r in rates(TrainConfig(epochs=epochs, schedule=schedule, warmup=warmup), steps))


@pytest.mark.parametrize("processes", [1, 2])
def test_the_optimizer_uses_the_schedule_from_its_first_step(processes):
    """The rate follows the global batch; last_rate() is that of the step just taken, not of the next one."""
    config, steps = TrainConfig(epochs=2, batch_size=16), 3
    optimizer = build_optimizer(small_model(), config, processes)
    schedule = build_schedule(optimizer, config, steps)
    used, recorded = [], []
    for _ in range(2 * steps):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
        recorded.append(last_rate(schedule, config, steps))
    assert used == pytest.approx([0.1 * 16 * processes / 128 * factor for factor in rates(config, steps)])
    assert recorded == pytest.approx(used)


@pytest.mark.parametrize(
    ("name", "judge", "decay"), [("adam", torch.optim.Adam, 0.0), ("adamw", torch.optim.AdamW, 0.5)]
)
def test_adam_equals_torchs_own(name, judge, decay):
    config = TrainConfig(
        optimizer=name, lr=0.01, base_batch_size=12, batch_size=12, weight_decay=decay, head_lr_scale=1.0
    )
    ours, plain = small_model(), small_model()
    groups = [
        {"params": [p for p in plain.parameters() if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in plain.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer, judge = build_optimizer(ours, config, 1), judge(groups, lr=0.01)
    draws = torch.Generator().manual_seed(0)
    images, labels = torch.randn(12, 3, 32, 32, generator=draws), torch.randint(3, (12,), generator=draws)
    for _ in range(3):
        train_step(ours, [(images, labels)], optimizer, FP32, 0.0)
        judge.zero_grad()
        nn.functional.cross_entropy(plain(images), labels).backward()
        judge.step()
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_each_parameter_has_its_own_rate_and_decay():
    """Biases and BatchNorm are not decayed; only the last linear layer has the rate of the head."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5), nn.Linear(5, 3))
    config = replace(TrainConfig(), lr=0.2, batch_size=128, head_lr_scale=0.5, weight_decay=0.01)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = build_optimizer(model, config, processes=1).param_groups
    found = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert found == {
        "0.weight": (0.2, 0.01), "0.bias": (0.2, 0.0), "1.weight": (0.2, 0.0), "1.bias": (0.2, 0.0),
        "3.weight": (0.2, 0.01), "3.bias": (0.2, 0.0), "4.weight": (0.1, 0.01), "4.bias": (0.1, 0.0),
    }  # fmt: skip
