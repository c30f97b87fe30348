"""Unequal batches: how they are split, which images they hold, and that a step equals the serial one."""

import time
from dataclasses import replace
from itertools import chain

import pytest
import torch
from conftest import make_data, run_on_ranks
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import Precision
from ddp_workbook.distributed.ddp import MeteredDDP, average_buffers, unwrap
from ddp_workbook.distributed.process_group import World
from ddp_workbook.errors import InputError
from ddp_workbook.training import balance
from ddp_workbook.training.balance import given_batch_sizes, loss_weight, measure_batch_sizes, split_batch
from ddp_workbook.training.loader import TrainLoader
from ddp_workbook.training.loop import train_epoch, train_step
from ddp_workbook.training.optim import build_optimizer, build_schedule
from ddp_workbook.training.state import TrainingState

CPU = torch.device("cpu")
FP32 = Precision(CPU, "fp32")
CONFIG = TrainConfig(model="mlp", augment=False, batch_size=6, label_smoothing=0.1, lr=1e-12)
SHARES = {"1:2": [4, 8], "1:1:3": [4, 3, 11]}  # of 12 and of 18 images


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=9), st.integers(1, 300), st.integers(1, 2))
def test_a_split_is_whole_and_as_near_to_its_shares_as_whole_numbers_are(weights, each, least):
    images = max(each, least) * len(weights)
    sizes, exact = split_batch(images, weights, least), [images * weight / sum(weights) for weight in weights]
    assert sum(sizes) == images and min(sizes) >= least
    if min(exact) >= least:
        assert all(abs(size - share) < 1 for size, share in zip(sizes, exact, strict=True))


def test_sizes_that_fit_are_kept():
    assert split_batch(128, [37, 91]) == [37, 91]
    assert split_batch(8, [1, 127], least=2) == [2, 6]


@pytest.mark.parametrize("shares", SHARES)
def test_the_sizes_of_the_shares(shares):
    config = replace(CONFIG, balance=shares)
    assert given_batch_sizes(config, shares.count(":") + 1) == SHARES[shares]
    with pytest.raises(InputError, match=f"--balance {shares} must have a share for each of the 4 processes"):
        given_batch_sizes(config, 4)
    with pytest.raises(InputError, match="needs several processes"):
        given_batch_sizes(config, 1)


def test_equal_shares_and_unmeasured_ones_are_no_sizes():
    assert given_batch_sizes(CONFIG, 3) is given_batch_sizes(replace(CONFIG, balance="auto"), 3) is None


def test_batchnorm_has_two_images_on_every_rank():
    assert given_batch_sizes(replace(CONFIG, balance="1:500"), 2) == [1, 11]
    assert given_batch_sizes(replace(CONFIG, balance="1:500", model="resnet50"), 2) == [2, 10]


def images_of(batches):
    """Indices of the images: each has its own in its first pixel."""
    return [[((images[:, 0, 0, 0] + 2) * 63.75).round().int().tolist() for images, _ in step] for step in batches]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("sizes", [[4, 8], [4, 3, 11], [6, 6]])
def test_the_ranks_batches_are_the_serial_ones_split(sizes, accumulate):
    """So each image is visited once an epoch, but for an incomplete last step, and all ranks take as many steps."""
    data, ranks = make_data(train=100), len(sizes)
    config = replace(CONFIG, grad_accum_steps=accumulate)
    serial = TrainLoader(data, replace(config, batch_size=6 * ranks), World(), CPU)
    expected = images_of(serial.epoch(2))
    loaders = [TrainLoader(data, config, World(rank, ranks), CPU) for rank in range(ranks)]
    parts = [images_of(loader.epoch(2, 0, sizes)) for loader in loaders]
    joined = [[list(chain(*batch)) for batch in zip(*step, strict=True)] for step in zip(*parts, strict=True)]
    assert joined == expected
    seen = [image for step in joined for batch in step for image in batch]
    assert len(seen) == len(set(seen)) == loaders[0].steps * accumulate * sum(sizes)
    assert all(len(batch) == size for part, size in zip(parts, sizes, strict=True) for step in part for batch in step)


def test_skipped_steps_do_not_change_the_others():
    loader = TrainLoader(make_data(), replace(CONFIG, augment=True, flip=True), World(1, 2), CPU)
    complete, rest = list(loader.epoch(1, 0, [4, 8])), list(loader.epoch(1, 2, [4, 8]))
    assert len(complete) == 4
    for step, same in zip(complete[2:], rest, strict=True):
        for (images, labels), (others, also) in zip(step, same, strict=True):
            assert torch.equal(images, others) and torch.equal(labels, also)


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.Tanh(), nn.Flatten(), nn.Linear(256, 3))


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()]).double()


def step_on(model, loader, config, sizes, weight, dtype):
    batches = [(images.to(dtype), labels) for images, labels in next(loader.epoch(1, 0, sizes))]
    train_step(model, batches, build_optimizer(model, config, 1), FP32, config.label_smoothing, weight)
    return gradients(model)


def errors_on_rank(rank, ranks, sizes, hook, dtype):
    """Largest error of the averaged gradient, over the serial one's largest value: with the weights, and without."""
    data, world = make_data(train=100), World(rank, ranks, rank, ranks, launched=True)
    config = replace(CONFIG, grad_accum_steps=2, comm_hook=hook)
    whole = replace(config, batch_size=6 * ranks)
    expected = step_on(small_model().to(dtype), TrainLoader(data, whole, World(), CPU), whole, None, 1.0, dtype)
    errors = []
    for weight in (loss_weight(sizes, rank), 1.0):
        ddp = MeteredDDP(small_model().to(dtype), CPU, config)
        found = step_on(ddp, TrainLoader(data, config, world, CPU), config, sizes, weight, dtype)
        errors.append(((found - expected).abs().max() / expected.abs().max()).item())
    return errors


# What each rank is asked, all in one start of the processes


def metrics_of_an_epoch(rank, ranks, sizes):
    """Loss and accuracy of an epoch that covers all images; and those of a serial one."""
    data = make_data(train=6 * ranks * 4)
    config = replace(CONFIG, label_smoothing=0.0)
    found = []
    for world, settings, shares in (
        (World(rank, ranks, rank, ranks, launched=True), config, sizes),
        (World(), replace(config, batch_size=6 * ranks), None),
    ):
        loader = TrainLoader(data, settings, world, CPU)
        model = MeteredDDP(small_model(), CPU, settings) if world.launched else small_model()
        optimizer = build_optimizer(model, settings, 1)
        schedule = build_schedule(optimizer, settings, loader.steps)
        state = TrainingState(model, optimizer, schedule, FP32, settings.epochs, loader.steps, batch_sizes=shares)
        found.append(train_epoch(state, loader, settings))
    return found


def running_means(rank, sizes):
    """BatchNorm's running mean on this rank, and that of one process with the joined batch."""
    values = torch.randn(sum(sizes), 4, generator=torch.Generator().manual_seed(1))
    own, serial = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    own(values.split(sizes)[rank]), serial(values)
    average_buffers(own, loss_weight(sizes, rank))
    return own.running_mean.tolist(), serial.running_mean.tolist()


def answers_on_rank(rank, ranks, sizes):
    hooks = [("allreduce", torch.float64), ("allreduce", torch.float32), ("shared-memory", torch.float32)]
    errors = [errors_on_rank(rank, ranks, sizes, *each) for each in hooks]
    return errors, metrics_of_an_epoch(rank, ranks, sizes), running_means(rank, sizes)


@pytest.mark.parametrize("shares", SHARES)
def test_a_step_an_epoch_and_buffers_equal_the_serial_ones(shares):
    sizes = SHARES[shares]
    for errors, (found, expected), (mean, joined) in run_on_ranks(answers_on_rank, len(sizes), len(sizes), sizes):
        (double, _), *single = errors
        assert double < 1e-12
        assert all(weighted < 1e-6 < 1e-2 < without for weighted, without in single)
        assert found == pytest.approx(expected, rel=1e-5)
        assert mean == pytest.approx(joined, abs=1e-6)


class Slow(nn.Module):
    """Takes a time in proportion to its images; every third pass is disturbed and takes five times as long."""

    def __init__(self, seconds, disturbed):
        super().__init__()
        self.inner, self.seconds = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3072), nn.Linear(3072, 3)), seconds
        self.disturbed, self.passes = disturbed, 0

    def forward(self, images):
        self.passes += 1
        time.sleep(self.seconds * len(images) * (5 if self.disturbed and self.passes % 3 == 0 else 1))
        return self.inner(images)


def measured_on_rank(rank, ranks):
    """The sizes measured when the last rank needs three times as long; whether the model is as before."""
    loader = TrainLoader(make_data(), CONFIG, World(rank, ranks), CPU)
    torch.manual_seed(0)
    model = MeteredDDP(Slow(0.03 if rank == ranks - 1 else 0.01, disturbed=rank == 0), CPU, CONFIG)
    before = {name: value.clone() for name, value in unwrap(model).state_dict().items()}
    balance.TIMED_SECONDS = 0.5
    draws = torch.get_rng_state()
    sizes = measure_batch_sizes(model, loader, CONFIG, FP32)
    same = all(torch.equal(value, before[name]) for name, value in unwrap(model).state_dict().items())
    return sizes, same and all(p.grad is None for p in model.parameters()) and torch.equal(torch.get_rng_state(), draws)


def test_a_slow_rank_is_measured_and_a_disturbance_is_not():
    """A third of the speed, but for what is not sleep: 9 of 12 images for the other one."""
    (first, unchanged), (second, also) = run_on_ranks(measured_on_rank, 2, 2)
    assert first == second and sum(first) == 12
    assert first[0] in (8, 9, 10)
    assert unchanged and also
