"""The training loop against hand-written steps, torch's schedulers and scikit-learn."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from conftest import make_data
from ddp_workbook.checkpoint import TrainingState
from ddp_workbook.engine import (
    build_optimizer,
    build_schedule,
    evaluate,
    fit,
    learning_rate_factor,
    train_epoch,
    train_step,
)
from ddp_workbook.loader import Normaliser, TrainLoader, evaluation_batches
from ddp_workbook.tally import add_up
from sklearn.metrics import confusion_matrix, log_loss
from torch import nn

from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import Arithmetic
from ddp_workbook.distributed import World
from ddp_workbook.errors import InputError

CPU = torch.device("cpu")
FP32 = Arithmetic(CPU, "fp32")


def small_model(classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(256, classes))


def some_batch(count=12, classes=3, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 32, 32, generator=draws), torch.randint(classes, (count,), generator=draws)


def test_a_step_equals_one_written_by_hand():
    config = TrainConfig(batch_size=12, lr=0.1, lr_batch=12, head_lr=0.2)
    ours, plain = small_model(), small_model()
    images, labels = some_batch()
    convolution, linear = plain[0], plain[3]
    groups = [
        {"params": [convolution.weight], "weight_decay": config.weight_decay},
        {"params": [convolution.bias]},
        {"params": [linear.weight], "weight_decay": config.weight_decay, "lr": 0.02},
        {"params": [linear.bias], "lr": 0.02},
    ]
    by_hand = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    optimizer = build_optimizer(ours, config, processes=1)
    for _ in range(3):
        sums = add_up(train_step(ours, [(images, labels)], optimizer, FP32, 0.1))
        by_hand.zero_grad()
        logits = plain(images)
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
        loss.backward()
        by_hand.step()
        right = (logits.argmax(1) == labels).sum().item()
        assert sums.tolist() == pytest.approx([loss.item() * 12, right, 12], rel=1e-5)
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_accumulated_batches_equal_one_large_batch():
    config = TrainConfig(batch_size=4, accumulate=3, lr_batch=12)
    ours, whole = small_model(), small_model()
    images, labels = some_batch()
    parts = list(zip(images.split(4), labels.split(4), strict=True))
    outcomes = train_step(ours, parts, build_optimizer(ours, config, 1), FP32, 0.0)
    expected = train_step(whole, [(images, labels)], build_optimizer(whole, config, 1), FP32, 0.0)
    assert torch.allclose(add_up(outcomes), add_up(expected), rtol=1e-5)
    for mine, theirs in zip(ours.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


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


def test_stairs_equal_torchs_step_schedule():
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


def test_the_optimizer_uses_the_schedule_from_its_first_step(data):
    config = TrainConfig(epochs=2, batch_size=16)
    loader = TrainLoader(data, config, World(), CPU)
    optimizer = build_optimizer(small_model(), config, processes=1)
    schedule = build_schedule(optimizer, config, loader.steps)
    used = []
    for _ in range(2 * loader.steps):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert used == pytest.approx([config.peak_lr(1) * r for r in rates(config, loader.steps)])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_equals_scikit_learns(data, precision):
    model, amp = small_model(), Arithmetic(CPU, precision)
    normalise = Normaliser(data, CPU)
    confusion, loss = evaluate(model, evaluation_batches(data.test, normalise, World()), 3, amp)
    with torch.no_grad(), amp.autocast():
        logits = model.eval()(normalise(data.test.images)).float()
    assert (confusion.numpy() == confusion_matrix(data.test.labels, logits.argmax(1), labels=[0, 1, 2])).all()
    judge = log_loss(data.test.labels, logits.double().softmax(1), labels=[0, 1, 2])
    assert loss == pytest.approx(judge, rel=1e-4)


def test_epoch_metrics_are_means_over_images(data):
    """With a learning rate near zero the model stays put, so the epoch's mean is the mean over its images."""
    config = TrainConfig(batch_size=16, lr=1e-12, label_smoothing=0.0, augment=False)
    loader, model = TrainLoader(data, config, World(), CPU), small_model()
    optimizer = build_optimizer(model, config, 1)
    schedule = build_schedule(optimizer, config, loader.steps)
    loss, right = train_epoch(model, loader, optimizer, schedule, FP32, config, epoch=1)
    confusion, judge = evaluate(model, evaluation_batches(data.train, loader.normalise, World()), 3, FP32)
    assert loss == pytest.approx(judge, rel=1e-5)
    assert right == pytest.approx(confusion.diagonal().sum().item() / 48)


def run(data, config, model):
    loader = TrainLoader(data, config, World(), CPU)
    optimizer = build_optimizer(model, config, 1)
    state = TrainingState(model, optimizer, build_schedule(optimizer, config, loader.steps), FP32)
    return fit(state, loader, data, config, World())


def colour_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(3, 3))


def test_fit_learns_and_repeats_itself():
    data = make_data(train=64)
    colour = 200 * torch.eye(3, dtype=torch.uint8)[data.train.labels]  # class 0 is red, 1 green, 2 blue
    plain = replace(data.train, images=colour[:, None, None].expand(-1, 32, 32, 3).contiguous())
    data = replace(data, train=plain, test=plain)
    config = TrainConfig(epochs=10, batch_size=16, lr=0.1, lr_batch=16, augment=False)
    history, confusion = run(data, config, colour_model())
    again, _ = run(data, config, colour_model())
    assert confusion.sum() == 64
    assert history[-1].test_accuracy == 1.0 > history[0].test_accuracy
    assert [e.train_loss for e in history] == [e.train_loss for e in again]
    assert history[-1].images_per_second == pytest.approx(64 / history[-1].train_seconds)


def test_a_diverged_run_says_so(data):
    model = small_model()
    with torch.no_grad():
        model[3].weight.fill_(float("nan"))
    with pytest.raises(InputError, match="training diverged: the loss is no longer a number at step 1 of epoch 1"):
        run(data, TrainConfig(epochs=1, batch_size=16), model)


def test_fp32_arithmetic_is_not_autocast():
    x = copy.deepcopy(some_batch()[0])
    with FP32.autocast():
        assert small_model()(x).dtype == torch.float32
    with Arithmetic(CPU, "bf16").autocast():
        assert small_model()(x).dtype == torch.bfloat16


def test_adam_equals_torchs_own():
    config = TrainConfig(optimizer="adam", lr=0.01, lr_batch=12, batch_size=12, weight_decay=0.0, head_lr=1.0)
    ours, plain = small_model(), small_model()
    optimizer, judge = build_optimizer(ours, config, 1), torch.optim.Adam(plain.parameters(), lr=0.01)
    images, labels = some_batch()
    for _ in range(3):
        train_step(ours, [(images, labels)], optimizer, FP32, 0.0)
        judge.zero_grad()
        nn.functional.cross_entropy(plain(images), labels).backward()
        judge.step()
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)
