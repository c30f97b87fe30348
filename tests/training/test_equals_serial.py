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


def weights_after_training(model, world):
    """All weights after the steps in fp32, as one vector (parameters,)."""
    config = TrainConfig(
        model=model, epochs=1, batch_size=GLOBAL_BATCH // world.size, base_batch_size=GLOBAL_BATCH, lr=1e-3,
        optimizer="sgd" if model == "resnet50" else "adamw", head_lr_scale=1.0, augment=False, precision="fp32",
        device="cpu",
    )  # fmt: skip
    data, device = make_data(train=GLOBAL_BATCH * STEPS[model]), torch.device("cpu")
    state = build_state(config, data, world, device)
    state.model.train()
    for batches in TrainLoader(data, config, world, device).epoch(1):
        train_step(state.model, batches, state.optimizer, state.precision, config.label_smoothing)
        state.schedule.step()
    return torch.cat([p.detach().flatten() for p in unwrap(state.model).parameters()])


def train_as_rank(rank):
    """Plain numbers would take long to send, so the weights travel as an array."""
    world = World(rank, 2, rank, 2, launched=True)
    return {model: weights_after_training(model, world).numpy() for model in STEPS}


def test_without_batch_norm_two_ranks_end_with_the_weights_of_the_serial_run():
    first, second = run_on_ranks(train_as_rank, 2)
    difference = {}
    for model in STEPS:
        assert (first[model] == second[model]).all()
        serial = weights_after_training(model, World())
        difference[model] = ((torch.from_numpy(first[model]) - serial).norm() / serial.norm()).item()
    assert max(difference["vit"], difference["lstm"]) < 1e-5 < difference["resnet50"], difference
