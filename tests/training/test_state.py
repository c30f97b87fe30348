"""How a run is put together, begun again, and how its progress and time are counted."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import make_data, run_on_ranks
from torch import nn

from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import Precision
from ddp_workbook.distributed.ddp import MeteredDDP, unwrap
from ddp_workbook.distributed.process_group import World
from ddp_workbook.errors import InputError
from ddp_workbook.training import state as state_module
from ddp_workbook.training.loader import TrainLoader, stream
from ddp_workbook.training.loop import train_step
from ddp_workbook.training.metrics import RunningMetrics
from ddp_workbook.training.models import build_model
from ddp_workbook.training.state import PartialEpoch, Stopwatch, TrainingState, build_state, restart

CPU = torch.device("cpu")
CONFIG = TrainConfig(model="mlp", batch_size=8, base_batch_size=8, lr=0.01, dropout=0.2, precision="fp32", seed=3)
OTHER_SEED = 11


def weights(model):
    return torch.cat([p.detach().flatten() for p in unwrap(model).parameters()])


def first_weights(seed):
    """Those of a new model in a process with this seed."""
    torch.manual_seed(seed)
    return weights(build_model(CONFIG, 3))


def train(state, config, world):
    """Three steps as fit() begins them; the loss of the last one."""
    loader = TrainLoader(make_data(), config, world, CPU)
    torch.manual_seed(stream(config.seed, world.rank))
    state.model.train()
    return take_steps(state, loader)


def take_steps(state, loader):
    for _, batches in zip(range(3), loader.epoch(1), strict=False):
        outputs = train_step(state.model, batches, state.optimizer, state.precision, 0.0)
        state.schedule.step()
    return outputs[-1].loss.item()


def test_a_baseline_is_a_plain_model_with_the_weights_of_its_seed(data):
    state = build_state(CONFIG, data, World(), CPU)
    assert torch.equal(weights(state.model), first_weights(seed=3))
    assert not torch.equal(
        weights(state.model), weights(build_state(replace(CONFIG, seed=4), data, World(), CPU).model)
    )
    assert isinstance(state.model, nn.Sequential)
    assert (state.epoch, state.step, state.history, state.epochs) == (0, 0, [], CONFIG.epochs)
    assert state.steps_per_epoch == 48 // 8
    assert state.schedule.base_lrs[0] == 0.01
    assert state.device == CPU


def test_what_cannot_be_trained_is_refused_before_it_begins(data):
    with pytest.raises(InputError, match="larger than a process's share"):
        build_state(replace(CONFIG, batch_size=49), data, World(), CPU)
    with pytest.raises(InputError, match="--precision fp16 needs an accelerator"):
        build_state(replace(CONFIG, precision="fp16"), data, World(), CPU)


def built_and_restarted(rank, ranks):
    """Facts about a state that was built, one that was trained and restarted, and a new one with the same seed."""
    world, data = World(rank, ranks, rank, ranks, launched=True), make_data()
    state = build_state(CONFIG, data, world, CPU)
    model, meter = state.model, state.model.meter
    facts = {
        "is ddp": isinstance(model, MeteredDDP),
        "first weights": weights(model).numpy(),
        "rate": state.schedule.base_lrs[0],
        "steps": state.steps_per_epoch,
    }
    train(state, CONFIG, world)
    facts["trained weights"] = weights(model).numpy()

    other = replace(CONFIG, seed=OTHER_SEED)
    loader = TrainLoader(data, other, world, CPU)
    restart(state, other, data, world, OTHER_SEED)
    facts["kept"] = state.model is model and model.meter is meter
    facts["restarted weights"] = weights(model).numpy()
    facts["restarted loss"] = take_steps(state, loader)
    facts["weights after restart"] = weights(model).numpy()

    new = build_state(other, data, world, CPU)
    facts["new weights"] = weights(new.model).numpy()
    facts["new loss"] = train(new, other, world)
    facts["weights after new start"] = weights(new.model).numpy()
    return facts


@pytest.fixture(scope="module")
def facts():
    return run_on_ranks(built_and_restarted, 2, 2)


def test_ranks_start_from_the_weights_of_the_baseline(facts):
    serial = first_weights(seed=3).numpy()
    for fact in facts:
        assert fact["is ddp"]
        assert (fact["first weights"] == serial).all()


def test_rate_and_steps_follow_the_number_of_processes(facts):
    assert [(fact["rate"], fact["steps"]) for fact in facts] == [(0.02, 3)] * 2


def test_a_restarted_run_equals_a_new_one_bit_for_bit(facts):
    """Weights, optimizer, learning rate and dropout begin again; the model and its meter are the same objects."""
    for fact in facts:
        assert fact["kept"]
        assert not (fact["trained weights"] == fact["first weights"]).all()
        assert (fact["restarted weights"] == fact["new weights"]).all()
        assert fact["restarted loss"] == fact["new loss"]
        assert (fact["weights after restart"] == fact["weights after new start"]).all()


def test_dropout_differs_between_ranks(data):
    """One rank after the other, with the same images: only the random numbers can differ."""
    outputs = []
    for rank in range(2):
        state = build_state(CONFIG, data, World(), CPU)
        restart(state, CONFIG, data, World(rank, 2), seed=5)
        outputs.append(state.model.train()(torch.ones(4, 3, 32, 32)))
        assert torch.equal(
            weights(state.model), weights(build_state(replace(CONFIG, seed=5), data, World(), CPU).model)
        )
    assert not torch.equal(*outputs)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands at `clock.now`."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(state_module.time, "perf_counter", lambda: clock.now)
    return clock


def test_the_stopwatch_does_not_count_pauses(clock):
    watch = Stopwatch()
    clock.now += 3
    with watch.paused():
        clock.now += 100
    clock.now += 4
    assert watch.seconds == 7


def test_the_clock_of_a_resumed_epoch_continues(clock):
    partial = PartialEpoch(seconds=50.0)
    clock.now += 1000  # between resuming and the first step
    partial.start_clock()
    clock.now += 2
    assert partial.clock.seconds == 52


@pytest.mark.parametrize(
    ("epoch", "steps", "step", "at_epoch_end", "finished"),
    [(0, 0, 0, False, False), (0, 4, 4, True, False), (1, 3, 7, False, False), (2, 0, 8, False, True)],
)
def test_steps_are_counted_over_the_run(epoch, steps, step, at_epoch_end, finished):
    partial = PartialEpoch(RunningMetrics(counted=steps))
    state = TrainingState(
        nn.Linear(1, 1), None, None, Precision(CPU, "fp32"), 2, steps_per_epoch=4, epoch=epoch, partial=partial
    )
    assert (state.step, state.at_epoch_end, state.finished) == (step, at_epoch_end, finished)
