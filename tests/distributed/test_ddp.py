"""DDP on two real processes, against a serial computation of the same thing."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from conftest import make_data, run_on_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import Precision
from ddp_workbook.distributed.ddp import (
    MeteredDDP,
    add_communication,
    average_buffers,
    gradient_sync,
    take_communication,
    unwrap,
)
from ddp_workbook.records.run import Communication
from ddp_workbook.training.loader import Normalize
from ddp_workbook.training.loop import train_step
from ddp_workbook.training.optim import build_optimizer

CPU = torch.device("cpu")
FP32 = Precision(CPU, "fp32")
CONFIG = TrainConfig(batch_size=8, base_batch_size=16, label_smoothing=0.0, augment=False)
PARAMETERS = 4 * 3 * 3 * 3 + 4 + 256 * 3 + 3


def plain_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))


def ddp_model(seed=0):
    return MeteredDDP(plain_model(seed), CPU, CONFIG)


def batch(part):
    """These of the first 32 training images, and their labels."""
    data = make_data()
    return Normalize(data, CPU)(data.train.images[:32])[part], data.train.labels[:32][part]


def backward(model, part):
    images, labels = batch(part)
    nn.functional.cross_entropy(model(images), labels).backward()


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


# What each of two ranks is asked; all in one start of the processes.


def starts_from_the_weights_of_rank_0(rank):
    pairs = zip(plain_model().parameters(), ddp_model(seed=rank).parameters(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def difference_after_an_accumulated_step(rank):
    """Largest difference from the weights that one process gets from all images."""
    config = replace(CONFIG, grad_accum_steps=2)
    serial, ddp = plain_model(), ddp_model(seed=rank)
    mine = [batch(slice(rank, 16 + rank, 2)), batch(slice(16 + rank, None, 2))]
    all_images = [batch(slice(0, 16)), batch(slice(16, 32))]
    train_step(serial, all_images, build_optimizer(serial, config, 2), FP32, 0.0)
    train_step(ddp, mine, build_optimizer(ddp, config, 2), FP32, 0.0)
    return max((a - b).abs().max().item() for a, b in zip(serial.parameters(), ddp.parameters(), strict=True))


def gradients_without_and_with_sync(rank):
    """The gradients of this rank's images, and the number of buckets that DDP all-reduced for them."""
    model, found = ddp_model(), []
    for enabled in (False, True):
        model.zero_grad()
        with gradient_sync(model, enabled):
            backward(model, slice(rank, 16, 2))
        traffic = model.meter.take()
        found.append((gradients(model).tolist(), len(traffic.buckets), len(traffic.waited)))
    return found


def communication_of_two_steps(rank):
    """Taken after two synchronized backward passes, and once more after none."""
    model = ddp_model()
    for _ in range(2):
        with gradient_sync(model, enabled=True):
            backward(model, slice(rank, 16, 2))
    return [take_communication(model).model_dump() for _ in range(2)]


def averaged_running_statistics(rank):
    norm = nn.Sequential(nn.BatchNorm1d(4))
    norm(torch.full((6, 4), float(rank)) + torch.arange(6.0)[:, None])
    norm[0].num_batches_tracked += 7 * rank
    average_buffers(norm)
    return norm[0].running_mean.tolist(), norm[0].num_batches_tracked.item()


def parameter_names(rank):
    return list(unwrap(ddp_model()).state_dict())


QUESTIONS = (
    starts_from_the_weights_of_rank_0,
    difference_after_an_accumulated_step,
    gradients_without_and_with_sync,
    communication_of_two_steps,
    averaged_running_statistics,
    parameter_names,
)


def answer_all(rank):
    return {question.__name__: question(rank) for question in QUESTIONS}


@pytest.fixture(scope="module")
def answers():
    """answers(question): the answers of both ranks."""
    by_rank = run_on_ranks(answer_all, 2)
    return lambda question: [answer[question.__name__] for answer in by_rank]


def test_ddp_starts_from_the_weights_of_rank_0(answers):
    assert answers(starts_from_the_weights_of_rank_0) == [True, True]


def test_accumulated_ddp_step_equals_the_serial_step_on_the_joined_batch(answers):
    assert max(answers(difference_after_an_accumulated_step)) < 1e-6


def test_gradients_are_averaged_where_sync_is_enabled_and_only_there(answers):
    own = []
    for rank in range(2):
        model = plain_model()
        backward(model, slice(rank, 16, 2))
        own.append(gradients(model))
    mean = (own[0] + own[1]) / 2
    assert not torch.allclose(own[0], own[1], atol=1e-3)
    for rank, (without, with_sync) in enumerate(answers(gradients_without_and_with_sync)):
        assert torch.allclose(torch.tensor(without[0]), own[rank], atol=1e-6)
        assert without[1:] == (0, 0)  # neither a bucket nor a wait was metered
        assert torch.allclose(torch.tensor(with_sync[0]), mean, atol=1e-6)
        assert with_sync[1:] == (1, 1)


def test_communication_is_that_since_the_last_call_and_the_same_on_both_ranks(answers):
    first, second = answers(communication_of_two_steps)
    assert first == second
    two_steps, none = first
    assert (two_steps["collectives"], two_steps["gradient_bytes"]) == (2, 2 * 4 * PARAMETERS)
    assert two_steps["collective_seconds"] > 0 < two_steps["waited_seconds"]
    assert set(none.values()) == {0}


def test_running_statistics_are_averaged(answers):
    """Batch means 2.5 and 3.5, momentum 0.1: 0.25 and 0.35 before, 0.3 after on both ranks. Counters stay."""
    (first, one), (second, eight) = answers(averaged_running_statistics)
    assert first == pytest.approx([0.3] * 4)
    assert second == first
    assert (one, eight) == (1, 8)


def test_unwrapped_names_are_those_of_the_model(answers):
    assert answers(parameter_names) == [list(plain_model().state_dict())] * 2


def test_metered_ddp_is_ddp():
    assert issubclass(MeteredDDP, DistributedDataParallel)


def test_a_model_of_one_process_has_nothing_to_synchronize():
    model = plain_model()
    for enabled in (False, True):
        assert isinstance(gradient_sync(model, enabled), nullcontext)
    assert unwrap(model) is model
    assert take_communication(model) is None


def test_without_a_group_buffers_stay_as_they_are():
    norm = nn.BatchNorm1d(4)
    norm(torch.arange(24.0).view(6, 4))
    before = norm.running_mean.clone()
    average_buffers(norm)
    assert torch.equal(norm.running_mean, before)


def test_communication_of_the_parts_of_an_epoch_is_added():
    one = Communication(waited_seconds=1.0, collective_seconds=2.0, gradient_bytes=30, collectives=4)
    other = Communication(waited_seconds=0.5, collective_seconds=0.25, gradient_bytes=5, collectives=6)
    assert add_communication(one, other) == Communication(
        waited_seconds=1.5, collective_seconds=2.25, gradient_bytes=35, collectives=10
    )
    assert add_communication(None, other) == add_communication(other, None) == other
    assert add_communication(None, None) is None
