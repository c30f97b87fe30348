"""Two ranks against one process on the joined batch: equal weights without BatchNorm, other weights with it."""

import torch
from conftest import make_data, run_on_ranks

from ddp_workbook.config import TrainConfig
from ddp_workbook.distributed.ddp import unwrap
from ddp_workbook.distributed.process_group import World
from ddp_workbook.training.loader import TrainLoader
from ddp_workbook.training.loop import train_step
from ddp_workbook.training.state import build_state

STEPS = {"vit": 50, "lstm": 50, "resnet50": 3}
GLOBAL_BATCH = 16


def weights(state):
    """As one vector (parameters,)."""
    return torch.cat([p.detach().flatten() for p in unwrap(state.model).parameters()])


def train(model, world):
    """The weights before and after the steps in fp32."""
    config = TrainConfig(
        model=model, epochs=1, batch_size=GLOBAL_BATCH // world.size, base_batch_size=GLOBAL_BATCH, lr=1e-3,
        optimizer="sgd" if model == "resnet50" else "adamw", head_lr_scale=1.0, augment=False, precision="fp32",
        device="cpu",
    )  # fmt: skip
    data, device = make_data(train=GLOBAL_BATCH * STEPS[model]), torch.device("cpu")
    state = build_state(config, data, world, device)
    start = weights(state)
    state.model.train()
    for batches in TrainLoader(data, config, world, device).epoch(1):
        train_step(state.model, batches, state.optimizer, state.precision, config.label_smoothing)
        state.schedule.step()
    return start, weights(state)


def train_as_rank(rank):
    """The last weights travel as arrays: tensors would be shared with a process that has ended."""
    world = World(rank, 2, rank, 2, launched=True)
    return {model: train(model, world)[1].numpy() for model in STEPS}


def test_without_batch_norm_two_ranks_end_with_the_weights_of_the_serial_run():
    first, second = run_on_ranks(train_as_rank, 2)
    differences = {}
    for model in STEPS:
        assert (first[model] == second[model]).all()
        start, serial = train(model, World())
        distance = torch.from_numpy(first[model]) - serial
        differences[model] = (distance.norm() / (serial - start).norm()).item()  # relative to how far training came
    assert max(differences["vit"], differences["lstm"]) < 1e-5, differences
    assert differences["resnet50"] > 1e-2, differences
