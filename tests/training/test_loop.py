"""The training loop against hand-written steps and scikit-learn, on one process and on several."""

from dataclasses import replace

import pytest
import torch
from conftest import make_data, run_on_ranks
from sklearn.metrics import confusion_matrix, log_loss
from torch import nn

from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import Precision
from ddp_workbook.distributed.ddp import MeteredDDP
from ddp_workbook.distributed.process_group import World
from ddp_workbook.errors import InputError
from ddp_workbook.runs.stopping import StopRequest, TrainingMonitor
from ddp_workbook.training.loader import Normalize, TrainLoader, evaluation_batches
from ddp_workbook.training.loop import evaluate, fit, train_epoch, train_step
from ddp_workbook.training.metrics import sum_outputs
from ddp_workbook.training.optim import build_optimizer, build_schedule
from ddp_workbook.training.state import TrainingState

CPU = torch.device("cpu")
FP32 = Precision(CPU, "fp32")
# With a learning rate near zero the model stays as it is, so the epoch's mean loss is the mean over its images.
FROZEN = TrainConfig(batch_size=8, lr=1e-12, label_smoothing=0.0, augment=False)


def small_model(classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(256, classes))


def some_batch(count=12, classes=3, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 32, 32, generator=draws), torch.randint(classes, (count,), generator=draws)


def start(model, config, loader, world=World()):  # noqa: B008  (a frozen value)
    optimizer = build_optimizer(model, config, world.size)
    schedule = build_schedule(optimizer, config, loader.steps)
    return TrainingState(model, optimizer, schedule, FP32, config.epochs, loader.steps)


def test_a_step_equals_one_written_by_hand():
    config = TrainConfig(batch_size=12, lr=0.1, base_batch_size=12, head_lr_scale=0.2)
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
        sums = sum_outputs(train_step(ours, [(images, labels)], optimizer, FP32, 0.1))
        by_hand.zero_grad()
        logits = plain(images)
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
        loss.backward()
        by_hand.step()
        correct = (logits.argmax(1) == labels).sum().item()
        assert sums.tolist() == pytest.approx([loss.item() * 12, correct, 12], rel=1e-5)
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_accumulated_batches_equal_one_large_batch():
    config = TrainConfig(batch_size=4, grad_accum_steps=3, base_batch_size=12)
    ours, large = small_model(), small_model()
    images, labels = some_batch()
    parts = list(zip(images.split(4), labels.split(4), strict=True))
    outputs = train_step(ours, parts, build_optimizer(ours, config, 1), FP32, 0.0)
    expected = train_step(large, [(images, labels)], build_optimizer(large, config, 1), FP32, 0.0)
    assert torch.allclose(sum_outputs(outputs), sum_outputs(expected), rtol=1e-5)
    for mine, theirs in zip(ours.parameters(), large.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_equals_scikit_learns(data, precision):
    model, amp = small_model(), Precision(CPU, precision)
    normalize = Normalize(data, CPU)
    confusion, loss, correct = evaluate(model, evaluation_batches(data.test, normalize, World()), 3, amp)
    with torch.no_grad(), amp.autocast():
        logits = model.eval()(normalize(data.test.images)).float()
    assert (confusion.numpy() == confusion_matrix(data.test.labels, logits.argmax(1), labels=[0, 1, 2])).all()
    judge = log_loss(data.test.labels, logits.double().softmax(1), labels=[0, 1, 2])
    assert loss == pytest.approx(judge, rel=1e-4)
    assert correct.tolist() == (logits.argmax(1) == data.test.labels).tolist()


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


def count_tested(rank, ranks):
    data = make_data(test=10_000)
    witness = Witness(data)
    world = World(rank, ranks, rank, ranks, launched=True)
    confusion, _, correct = evaluate(witness, evaluation_batches(data.test, Normalize(data, CPU), world), 3, FP32)
    of_class_0 = (data.test.labels[witness.seen] == 0).tolist()  # what a network that answers 0 has right
    return witness.seen, confusion[:, 0].tolist(), confusion.sum().item(), correct.tolist() == of_class_0


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 7])
def test_every_test_image_is_tested_exactly_once(ranks):
    answers = run_on_ranks(count_tested, ranks, ranks)
    assert sorted(index for seen, *_ in answers for index in seen) == list(range(10_000))
    expected = torch.bincount(make_data(test=10_000).test.labels, minlength=3).tolist()
    assert all(counts == expected and total == 10_000 for _, counts, total, _ in answers)
    assert all(by_image for *_, by_image in answers)


def evaluation_of_all_training_images(data):
    """Loss and accuracy of the frozen model, by evaluate()."""
    batches = evaluation_batches(data.train, Normalize(data, CPU), World())
    confusion, loss, _ = evaluate(small_model(), batches, 3, FP32)
    return loss, confusion.diagonal().sum().item() / len(data.train)


def test_epoch_metrics_are_means_over_images(data):
    config = replace(FROZEN, batch_size=16)
    loader = TrainLoader(data, config, World(), CPU)
    metrics = train_epoch(start(small_model(), config, loader), loader, config)
    loss, accuracy = evaluation_of_all_training_images(data)
    assert metrics[0] == pytest.approx(loss, rel=1e-5)
    assert metrics[1] == pytest.approx(accuracy)


def metrics_of_an_epoch(rank, ranks):
    world, data = World(rank, ranks, rank, ranks, launched=True), make_data()
    loader = TrainLoader(data, FROZEN, world, CPU)
    state = start(MeteredDDP(small_model(), CPU, FROZEN), FROZEN, loader, world)
    return train_epoch(state, loader, FROZEN)


def test_training_metrics_cover_the_images_of_all_ranks(data):
    expected = evaluation_of_all_training_images(data)
    for metrics in run_on_ranks(metrics_of_an_epoch, 2, 2):
        assert metrics == pytest.approx(expected, rel=1e-5)


class Calls:
    """A callback that notes every call, with the state as it is then."""

    def __init__(self):
        self.calls = []

    def after_step(self, state):
        self.calls.append(("step", state.epoch, state.partial.step, state.step))

    def after_epoch(self, state):
        self.calls.append(("epoch", state.epoch, state.partial.step, len(state.history)))


def run(data, config, model, callbacks=()):
    loader = TrainLoader(data, config, World(), CPU)
    state = start(model, config, loader)
    tested = fit(state, loader, data, config, World(), callbacks)
    return state.history, tested.confusion


def colour_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(3, 3))


def test_fit_learns_and_repeats_itself():
    data = make_data(train=64)
    colour = 200 * torch.eye(3, dtype=torch.uint8)[data.train.labels]  # class 0 is red, 1 green, 2 blue
    plain = replace(data.train, images=colour[:, None, None].expand(-1, 32, 32, 3).contiguous())
    data = replace(data, train=plain, test=plain)
    config = TrainConfig(epochs=10, batch_size=16, lr=0.1, base_batch_size=16, augment=False)
    history, confusion = run(data, config, colour_model())
    again, _ = run(data, config, colour_model())
    assert confusion.sum() == 64
    assert history[-1].test_accuracy == 1.0 > history[0].test_accuracy
    assert [e.train_loss for e in history] == [e.train_loss for e in again]
    assert history[-1].images_per_second == pytest.approx(64 / history[-1].train_seconds)


def test_callbacks_are_called_after_each_step_and_each_epoch_in_their_order(data):
    first, second = Calls(), Calls()
    second.calls = first.calls
    run(data, replace(FROZEN, epochs=2, batch_size=24), small_model(), [first, second])
    once = [("step", 0, 1, 1), ("step", 0, 2, 2), ("epoch", 1, 0, 1)]
    once += [("step", 1, 1, 3), ("step", 1, 2, 4), ("epoch", 2, 0, 2)]
    assert first.calls == [call for call in once for _ in range(2)]


def test_a_callback_that_raises_ends_the_run(data):
    class Stop(Calls):
        def after_step(self, state):
            super().after_step(state)
            raise KeyboardInterrupt

    callback = Stop()
    with pytest.raises(KeyboardInterrupt):
        run(data, FROZEN, small_model(), [callback])
    assert callback.calls == [("step", 0, 1, 1)]


@pytest.mark.parametrize(
    ("callbacks", "where"),
    [
        ([], "the test loss is not finite after epoch 1"),
        ([TrainingMonitor(StopRequest(), before_stop=print)], "the loss is not finite at step 1 of epoch 1"),
    ],
    ids=["without a monitor", "with a monitor"],
)
def test_a_diverged_run_is_reported(data, callbacks, where):
    model = small_model()
    with torch.no_grad():
        model[3].weight.fill_(float("nan"))
    with pytest.raises(InputError, match=f"training diverged: {where}"):
        run(data, TrainConfig(epochs=1, batch_size=16), model, callbacks)


def test_fp32_is_not_autocast():
    x = some_batch()[0]
    with FP32.autocast():
        assert small_model()(x).dtype == torch.float32
    with Precision(CPU, "bf16").autocast():
        assert small_model()(x).dtype == torch.bfloat16
