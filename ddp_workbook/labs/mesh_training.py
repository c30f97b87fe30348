"""A short run of vit-digits on a mesh of 2 x 2 processes, data x tensor, beside the same run in one process.

The ledger writes down who talks to whom.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional

from ddp_workbook.analysis.mesh import Traffic, data_traffic, tensor_traffic
from ddp_workbook.config import TrainConfig
from ddp_workbook.distributed.process_group import World
from ddp_workbook.labs import team
from ddp_workbook.labs.answer import Answer
from ddp_workbook.labs.ledger import Entry
from ddp_workbook.recipes import serial_recipe
from ddp_workbook.specs import VIT_BLOCKS, VIT_GRID, VIT_WIDTH
from ddp_workbook.training.datasets import Dataset, ImageSet, load_dataset
from ddp_workbook.training.loader import TrainLoader
from ddp_workbook.training.loop import train_step
from ddp_workbook.training.models import build_model
from ddp_workbook.training.optim import build_optimizer, build_schedule
from ddp_workbook.training.state import build_state
from ddp_workbook.training.tensor_parallel import average_gradients, gather_weights, split_layers

DATA, TENSOR = 2, 2  # ranks in each dimension; rank = TENSOR * (place in data) + (place in tensor)
EPOCHS = 1
CONFIG = replace(serial_recipe("vit-digits"), epochs=EPOCHS, augment=False, precision="fp32", device="cpu")
"""The recipe's serial run, but without crops, which each rank would draw for itself."""
SECONDS = 300
NO_ANSWER = Answer("mesh", "", ())
CPU = torch.device("cpu")

OfRank = tuple[list[float], np.ndarray, list[Entry]]
"""A rank's losses, the whole network's parameters at the end, and the rank's collectives."""


@dataclass(frozen=True)
class Trained:
    """What a run leaves. A serial run has one rank and no collectives."""

    losses: list[float]
    """Mean loss of the global batch in each step."""
    weights: list[np.ndarray]
    """Of each rank: the whole network's parameters at the end, (parameters,) float32."""
    entries: list[list[Entry]]
    """Of each rank: the collectives of all steps."""

    @classmethod
    def of(cls, ranks: Sequence[OfRank]) -> Trained:
        """What the ranks have done together."""
        losses, weights, entries = zip(*ranks, strict=True)
        return cls(np.mean(losses, axis=0).tolist(), list(weights), list(entries))

    def traffic(self) -> dict[tuple[int, ...], Traffic]:
        """By group of ranks: what each of them puts into the group's collectives in one step."""
        calls, sizes = Counter(), Counter()
        for rank, entries in enumerate(self.entries):
            for entry in entries:
                if entry.ranks[0] == rank:  # the ledger has made sure that all ranks of the group called the same
                    calls[entry.ranks] += 1
                    sizes[entry.ranks] += entry.bytes
        steps = len(self.losses)
        return {ranks: Traffic(calls[ranks] / steps, sizes[ranks] / steps) for ranks in calls}


def train_serially() -> Trained:
    """The run in one process, with one thread.

    Raises CannotJudge when the process cannot be started, and Wrong with its error.
    """
    return Trained.of(team.run(partial(run_alone, config=CONFIG), NO_ANSWER, 1, SECONDS))


def train_on_mesh() -> Trained:
    """The same run on DATA x TENSOR processes, with one thread each.

    Raises CannotJudge when the processes cannot be started, and Wrong with the error of the rank that failed first.
    """
    return Trained.of(team.run(partial(run_on_mesh, config=CONFIG), NO_ANSWER, DATA * TENSOR, SECONDS))


def run_alone(_: team.Rank, config: TrainConfig, images: int | None = None) -> OfRank:
    """The steps of one process, on the first `images` images (None: on all of them)."""
    data = _load(config, images)
    loader = TrainLoader(data, config, World(), CPU)
    state, losses = build_state(config, data, World(), CPU), []
    for epoch in range(1, config.epochs + 1):
        for batches in loader.epoch(epoch):
            [output] = train_step(state.model, batches, state.optimizer, state.precision, config.label_smoothing)
            state.schedule.step()
            losses.append(output.loss.item())
    return losses, _flat(state.model.parameters()), []


def run_on_mesh(rank: team.Rank, config: TrainConfig, images: int | None = None) -> OfRank:
    """The same steps on each rank of the mesh; `config` is the serial run's."""
    mesh = init_device_mesh("cpu", (DATA, TENSOR), mesh_dim_names=("data", "tensor"))
    data, losses = _load(config, images), []
    config = replace(config, batch_size=config.batch_size // DATA)
    loader = TrainLoader(data, config, World(mesh.get_local_rank("data"), DATA), CPU)
    torch.manual_seed(config.seed)  # the same weights on all ranks
    model = build_model(config, len(data.classes))
    split_layers(model, mesh["tensor"])
    optimizer = build_optimizer(model, config, processes=DATA)
    for group in optimizer.param_groups:
        group["fused"] = False  # torch's fused kernels do not take whole and split tensors together
    schedule = build_schedule(optimizer, config, loader.steps)
    rank.ledger.take()
    for epoch in range(1, config.epochs + 1):
        for [(pixels, labels)] in loader.epoch(epoch):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(pixels), labels, label_smoothing=config.label_smoothing)
            loss.backward()
            average_gradients(model, mesh.get_group("data"))
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    entries = rank.ledger.take()
    return losses, _flat(gather_weights(model, mesh["tensor"]).values()), entries


def predict_traffic(parameters: int) -> dict[str, Traffic]:
    """The closed forms for each dimension of the mesh; `parameters` are the whole network's."""
    images = CONFIG.batch_size // DATA
    return {
        "tensor": tensor_traffic(images, VIT_GRID**2, VIT_WIDTH, VIT_BLOCKS),
        "data": data_traffic(parameters, VIT_WIDTH, VIT_BLOCKS, TENSOR),
    }


def _load(config: TrainConfig, images: int | None) -> Dataset:
    data = load_dataset(config)
    return replace(data, train=ImageSet(data.train.images[:images], data.train.labels[:images]))


def _flat(parameters: Iterable[Tensor]) -> np.ndarray:
    return torch.cat([parameter.detach().flatten() for parameter in parameters]).numpy()
