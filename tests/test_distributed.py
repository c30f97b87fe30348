"""What several real processes compute, against a serial computation of the same thing."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from conftest import make_data, run_on_ranks
from ddp_workbook.engine import build_optimizer, build_schedule, evaluate, train_epoch, train_step
from ddp_workbook.loader import Normaliser, TrainLoader, evaluation_batches
from torch import nn

from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import Arithmetic
from ddp_workbook.distributed import World, average_buffers, gather_objects, read_world, reduce_sum, unwrap, wrap_ddp
from ddp_workbook.errors import InputError

CPU = torch.device("cpu")
FP32 = Arithmetic(CPU, "fp32")


class Witness(nn.Module):
    """Predicts class 0 for every image, and remembers which images it was shown."""

    def __init__(self, data):
        super().__init__()
        self.data, self.seen = data, []

    def forward(self, images):
        pixels = images[:, :2, 0, 0] * self.data.std[:2] + self.data.mean[:2]
        low, high = (255 * pixels).round().int().unbind(1)
        self.seen += (low + 256 * high).tolist()
        return torch.eye(3)[torch.zeros(len(images), dtype=torch.long)]


def plain_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))


def count_tested(rank, ranks):
    data = make_data(test=10_000)
    witness = Witness(data)
    world = World(rank, ranks, rank, ranks, launched=True)
    confusion, _ = evaluate(witness, evaluation_batches(data.test, Normaliser(data, CPU), world), 3, FP32)
    return witness.seen, confusion[:, 0].tolist(), confusion.sum().item()


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 7])
def test_every_test_image_is_tested_exactly_once(ranks):
    answers = run_on_ranks(count_tested, ranks, ranks)
    assert sorted(index for seen, _, _ in answers for index in seen) == list(range(10_000))
    expected = torch.bincount(make_data(test=10_000).test.labels, minlength=3).tolist()
    assert all(counts == expected and total == 10_000 for _, counts, total in answers)


def ddp_facts(rank, ranks):
    """Everything that two ranks are asked, in one start of the processes."""
    facts = {}
    world = World(rank, ranks, rank, ranks, launched=True)
    data = make_data()
    config = TrainConfig(batch_size=8, lr_batch=16, label_smoothing=0.0, augment=False)
    images = Normaliser(data, CPU)(data.train.images[:32])
    labels = data.train.labels[:32]

    serial, ddp = plain_model(), wrap_ddp(plain_model(seed=rank), CPU, config)
    facts["broadcast"] = all(torch.equal(a, b) for a, b in zip(serial.parameters(), ddp.parameters(), strict=True))
    mine = [
        (images[rank : 16 + rank : 2], labels[rank : 16 + rank : 2]),
        (images[16 + rank :: 2], labels[16 + rank :: 2]),
    ]
    whole = [(images[:16], labels[:16]), (images[16:], labels[16:])]
    two = replace(config, accumulate=2)
    train_step(serial, whole, build_optimizer(serial, two, 2), FP32, 0.0)
    train_step(ddp, mine, build_optimizer(ddp, two, 2), FP32, 0.0)
    facts["step"] = max((a - b).abs().max().item() for a, b in zip(serial.parameters(), ddp.parameters(), strict=True))

    facts["compression"] = {}
    for name in ("none", "bf16", "fp16", "powersgd"):
        squeezed = wrap_ddp(plain_model(), CPU, replace(config, gradient_compression=name))
        nn.functional.cross_entropy(squeezed(mine[0][0]), mine[0][1]).backward()
        exact = plain_model()
        nn.functional.cross_entropy(exact(images[:16]), labels[:16]).backward()
        flat = [torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (squeezed, exact)]
        facts["compression"][name] = ((flat[0] - flat[1]).norm() / flat[1].norm()).item()

    norm = nn.Sequential(nn.BatchNorm1d(4))
    norm(torch.full((6, 4), float(rank)) + torch.arange(6.0)[:, None])
    average_buffers(norm)
    facts["buffers"] = norm[0].running_mean.tolist()

    loader = TrainLoader(data, config, world, CPU)
    model = wrap_ddp(plain_model(), CPU, config)
    frozen = replace(config, lr=1e-12)
    optimizer = build_optimizer(model, frozen, 2)
    schedule = build_schedule(optimizer, frozen, loader.steps)
    facts["metrics"] = train_epoch(model, loader, optimizer, schedule, FP32, frozen, epoch=1)
    facts["unwrapped"] = list(unwrap(model).state_dict()) == list(plain_model().state_dict())
    facts["reduced"] = reduce_sum(torch.tensor([rank + 1])).item()
    facts["gathered"] = gather_objects(f"rank {rank}")
    facts["size"] = dist.get_world_size()
    return facts


@pytest.fixture(scope="module")
def facts():
    return run_on_ranks(ddp_facts, 2, 2)


def test_ddp_starts_from_the_weights_of_rank_0(facts):
    assert [fact["broadcast"] for fact in facts] == [True, True]


def test_accumulated_ddp_step_equals_the_serial_step_on_the_joined_batch(facts):
    assert max(fact["step"] for fact in facts) < 1e-6


@pytest.mark.parametrize(("name", "low", "high"), [("none", 0, 1e-6), ("bf16", 1e-5, 1e-2), ("fp16", 1e-6, 1e-2)])
def test_compressed_gradients_are_near_the_exact_ones(facts, name, low, high):
    """8 bits of precision round by at most 1/256, 11 bits by 1/2048; exactly zero would mean no compression."""
    assert all(low <= fact["compression"][name] <= high for fact in facts)


def test_powersgd_begins_exact(facts):
    """torch's hook averages plainly for its first steps, while the approximation would do harm."""
    assert all(fact["compression"]["powersgd"] < 1e-6 for fact in facts)


def test_running_statistics_are_averaged(facts):
    """Batch means 2.5 and 3.5, momentum 0.1: 0.25 and 0.35 before, 0.3 after on both ranks."""
    for fact in facts:
        assert fact["buffers"] == pytest.approx([0.3] * 4)


def test_training_metrics_cover_the_images_of_all_ranks(facts):
    data = make_data()
    model, batches = plain_model(), evaluation_batches(data.train, Normaliser(data, CPU), World())
    confusion, loss = evaluate(model, batches, 3, FP32)
    for fact in facts:
        assert fact["metrics"] == pytest.approx((loss, confusion.diagonal().sum().item() / 48), rel=1e-5)


def test_small_helpers(facts):
    assert [fact["reduced"] for fact in facts] == [3, 3]
    assert all(fact["gathered"] == ["rank 0", "rank 1"] for fact in facts)
    assert all(fact["unwrapped"] for fact in facts)


def test_alone_the_helpers_do_nothing():
    assert reduce_sum(torch.tensor([5])).item() == 5
    assert gather_objects("me") == ["me"]


def test_world_from_torchruns_variables(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert read_world() == World()
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert read_world() == World(3, 4, 1, 2, launched=True)
    monkeypatch.setenv("WORLD_SIZE", "four")
    with pytest.raises(InputError, match="whole numbers"):
        read_world()
