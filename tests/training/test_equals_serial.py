"""Two ranks against one process on the joined batch: equal weights without BatchNorm, other weights with it."""

from dataclasses import replace

import torch
from conftest import run_on_ranks

from ddp_workbook.distributed.ddp import unwrap
from ddp_workbook.distributed.process_group import World
from ddp_workbook.recipes import get_recipe
from ddp_workbook.training.datasets import ImageSet, load_dataset
from ddp_workbook.training.loader import TrainLoader
from ddp_workbook.training.loop import train_step
from ddp_workbook.training.state import build_state

STEPS = {"vit-digits": 50, "lstm-digits": 50, "resnet50-digits": 3}
GLOBAL_BATCH = 8  # 50 of them are fewer images than digits has, so that the run is one epoch


def train(recipe, world):
    """The weights (parameters,) after one epoch of the recipe, with its whole schedule, in fp32 and without crops."""
    config = replace(
        get_recipe(recipe), epochs=1, batch_size=GLOBAL_BATCH // world.size, base_batch_size=GLOBAL_BATCH,
        augment=False, precision="fp32", device="cpu",
    )  # fmt: skip
    data, count, device = load_dataset(config), GLOBAL_BATCH * STEPS[recipe], torch.device("cpu")
    data = replace(data, train=ImageSet(data.train.images[:count], data.train.labels[:count]))
    state = build_state(config, data, world, device)
    state.model.train()
    for batches in TrainLoader(data, config, world, device).epoch(1):
        train_step(state.model, batches, state.optimizer, state.precision, config.label_smoothing)
        state.schedule.step()
    return torch.cat([p.detach().flatten() for p in unwrap(state.model).parameters()])


def train_both_ways(rank):
    """Per recipe the last weights under DDP and of a serial run of this rank's own: arrays (2, parameters).

    They do not travel as tensors, whose memory would belong to a process that has ended.
    """
    worlds = World(rank, 2, rank, 2, launched=True), World()
    return {recipe: torch.stack([train(recipe, world) for world in worlds]).numpy() for recipe in STEPS}


def test_without_batch_norm_two_ranks_end_with_the_weights_of_the_serial_run():
    first, second = run_on_ranks(train_both_ways, 2)
    differences = {}
    for recipe in STEPS:
        assert (first[recipe] == second[recipe]).all()
        distributed, serial = torch.from_numpy(first[recipe])
        differences[recipe] = ((distributed - serial).norm() / serial.norm()).item()
    assert max(differences["vit-digits"], differences["lstm-digits"]) < 1e-5, differences
    assert differences["resnet50-digits"] > 1e-3, differences
