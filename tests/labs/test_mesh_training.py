"""vit-digits on 2 x 2 processes: the weights and losses of a serial run, and the collectives of the closed forms."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from ddp_workbook.labs import mesh_training, team
from ddp_workbook.training import models, tensor_parallel

STEPS = 3
ADAMW = replace(mesh_training.CONFIG, epochs=1)
CONFIGS = {"adamw": ADAMW, "sgd": replace(ADAMW, optimizer="sgd", lr=0.1)}
IMAGES = STEPS * ADAMW.batch_size
ROUNDING = 1e-5  # relative to the weights, as in tests/training/test_equals_serial.py; a mistake is 100 times as large


def average_nothing(model, group):
    """Each data rank steps with the gradients of its own images."""


def sum_over_data(model, group):
    tensor_parallel.average_gradients(model, group)
    for parameter in model.parameters():
        parameter.grad *= group.size()


def average_over_all(model, group):
    """The parts that the tensor ranks have of a layer are mixed."""
    tensor_parallel.average_gradients(model, dist.group.WORLD)


def sum_over_tensor(model, group):
    """Whole parameters' gradients are added up over the tensor ranks, which have the same already."""
    tensor_parallel.average_gradients(model, group)
    for parameter in model.parameters():
        if not isinstance(parameter, tensor_parallel.DTensor):
            parameter.grad *= mesh_training.TENSOR


WRONG = {
    "not averaged": (mesh_training, "average_gradients", average_nothing),
    "summed over data": (mesh_training, "average_gradients", sum_over_data),
    "averaged over all ranks": (mesh_training, "average_gradients", average_over_all),
    "summed over tensor": (mesh_training, "average_gradients", sum_over_tensor),
    "rows of other heads": (tensor_parallel, "_swap", lambda weight, *_: weight),
}


def with_one_block():
    return mock.patch.object(models, "VIT_BLOCKS", 1)


def train_all_cases(rank):
    """What run_on_mesh() returns: the whole network with AdamW; one block with SGD, right and wrong in each way.

    And one block with a mistake that AdamW hides.
    """
    found = {"adamw": mesh_training.run_on_mesh(rank, CONFIGS["adamw"], IMAGES)}
    with with_one_block():
        found["sgd"] = mesh_training.run_on_mesh(rank, CONFIGS["sgd"], IMAGES)
        for name, planted in WRONG.items():
            with mock.patch.object(*planted):
                found[name] = mesh_training.run_on_mesh(rank, CONFIGS["sgd"], IMAGES)
        with mock.patch.object(*WRONG["summed over tensor"]):
            found["hidden"] = mesh_training.run_on_mesh(rank, CONFIGS["adamw"], IMAGES)
    return found


def train_alone(rank):
    """The serial runs."""
    found = {"adamw": mesh_training.run_alone(rank, CONFIGS["adamw"], IMAGES)}
    with with_one_block():
        of_one_block = {name: mesh_training.run_alone(rank, config, IMAGES) for name, config in CONFIGS.items()}
    return found | {"sgd": of_one_block["sgd"], "hidden": of_one_block["adamw"]}


def run(program, ranks):
    of_ranks = team.run(program, mesh_training.NO_ANSWER, ranks, mesh_training.SECONDS)
    return {name: mesh_training.Trained.of([found[name] for found in of_ranks]) for name in of_ranks[0]}


@pytest.fixture(scope="module")
def trained():
    return run(train_all_cases, 4)


@pytest.fixture(scope="module")
def serial():
    return run(train_alone, 1)


def differences(run, serial):
    """Of the weights of all ranks, and of the losses, relative to the serial run's."""
    [expected] = map(torch.from_numpy, serial.weights)
    weights = max(((torch.from_numpy(own) - expected).norm() / expected.norm()).item() for own in run.weights)
    losses = [abs(own - its) / its for own, its in zip(run.losses, serial.losses, strict=True)]
    return weights, max(losses)


@pytest.mark.parametrize("optimizer", CONFIGS)
def test_the_mesh_trains_as_one_process_does(optimizer, trained, serial):
    run, expected = trained[optimizer], serial[optimizer]
    assert len(run.losses) == STEPS
    assert max(differences(run, expected)) < ROUNDING, differences(run, expected)
    assert all((weights == run.weights[0]).all() for weights in run.weights)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_mesh_is_found(name, trained, serial):
    weights, losses = differences(trained[name], serial["sgd"])
    assert weights > 100 * ROUNDING and losses > 100 * ROUNDING, (weights, losses)


def test_adamw_hides_a_factor_that_sgd_shows(trained, serial):
    """It divides gradients by their own size. So the test above is made with SGD."""
    _, losses = differences(trained["hidden"], serial["hidden"])
    assert losses < ROUNDING


def test_tensor_ranks_stay_equal_without_averaging(trained):
    first, second, third, fourth = trained["not averaged"].weights
    assert (first == second).all() and (third == fourth).all()
    assert (first != third).any()


def test_the_ledger_has_the_traffic_of_the_closed_forms(trained):
    run = trained["adamw"]
    expected = mesh_training.predict_traffic(parameters=len(run.weights[0]))
    of_tensor, of_data = dict.fromkeys([(0, 1), (2, 3)], "tensor"), dict.fromkeys([(0, 2), (1, 3)], "data")
    assert run.traffic() == {ranks: expected[dimension] for ranks, dimension in (of_tensor | of_data).items()}
    for entries in run.entries:
        assert {(entry.name, entry.dtype) for entry in entries} == {("all_reduce", "float32")}
        step = [(of_tensor | of_data)[entry.ranks] for entry in entries[: len(entries) // STEPS]]
        assert step == ["tensor"] * 16 + ["data"]
        assert [(of_tensor | of_data)[entry.ranks] for entry in entries] == STEPS * step
