"""A run of the recipe mlp-digits that is made of the reader's own parts: the loop of the capstone.

It does what distributed_train.py does, without DistributedDataParallel, DistributedSampler or the workbook's own parts,
and in float64: in float32, a ReLU at zero can make the rounding of two right sums a difference of 1e-4 in later losses.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from ddp_workbook.config import TrainConfig
from ddp_workbook.recipes import get_recipe
from ddp_workbook.training.datasets import Dataset, load_dataset
from ddp_workbook.training.models import build_model

EPOCHS = 2
BUCKET_BYTES = 800_000  # several buckets: the network has 4.6 MB of gradients
WARMUP_SHARE = 0.1


Wrap = Callable[[nn.Module, torch.optim.Optimizer], nn.Module]
"""Makes a model data-parallel."""


@dataclass
class Trained:
    """What a run leaves on one rank."""

    losses: list[float]
    """This rank's, of every step that was taken here."""
    weights: str
    """SHA-256 of the model's state."""
    tested: tuple[float, int, int]
    """Mean loss, correct predictions, images: of the test set."""


@dataclass(frozen=True)
class Plan:
    """What is trained: the recipe's network and data; the optimizer is SGD or the recipe's own, Adam."""

    names: dict
    """The reader's functions, and OwnDDP."""
    rank: int
    size: int
    seed: int
    optimizer: str

    @property
    def config(self) -> TrainConfig:
        return replace(get_recipe("mlp-digits"), epochs=EPOCHS, seed=self.seed)


def batch_of(images: Tensor) -> Tensor:
    """Images (N, height, width, 1) as uint8 to (N, 1, height, width) from 0 to 1, in the default type."""
    return images.permute(0, 3, 1, 2).to(torch.get_default_dtype()) / 255


def train(
    plan: Plan,
    wrap: Wrap,
    path: Path | None = None,
    stop_after: int | None = None,
    resume: bool = False,
) -> Trained | None:
    """Train on this rank. `stop_after`: save to `path` after so many steps, and return None. `resume`: from `path`."""
    config, names, data = plan.config, plan.names, load_dataset(plan.config)
    torch.set_default_dtype(torch.float64)  # of the model, and of buffers that the reader's parts make
    torch.manual_seed(plan.seed + 1000 * plan.rank + 7 * resume)  # start_alike() or load() has to make up for it
    module = build_model(config, len(data.classes))
    peak = names["peak_lr"](config.lr, config.base_batch_size, config.batch_size, plan.size, 1)
    if plan.optimizer == "sgd":
        optimizer = torch.optim.SGD(module.parameters(), lr=1.0, momentum=0.9)
        peak *= 50  # Adam's rate is far too small for SGD
    else:
        optimizer = torch.optim.Adam(module.parameters(), lr=1.0)
    steps = names["optimizer_steps"](len(data.train), config.batch_size, plan.size, 1, config.epochs)
    warmup = max(1, round(WARMUP_SHARE * steps))
    schedule = LambdaLR(optimizer, lambda step: names["lr_at"](step, steps, warmup, peak))
    model = wrap(module, optimizer)
    epoch, position = names["load"](path, model, optimizer, schedule) if resume else (0, 0)
    if not resume:
        torch.manual_seed(plan.seed + 1000 * plan.rank)  # dropout's masks, another stream on each rank
    losses: list[float] = []

    def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
        loss = functional.cross_entropy(outputs, targets)
        losses.append(loss.item())
        return loss

    warnings.filterwarnings("ignore", message="Seems like `optimizer.step")  # OwnDDP may replace it on purpose
    per_epoch = steps // config.epochs
    while epoch < config.epochs:
        mine = names["shard"](len(data.train), plan.rank, plan.size, epoch, plan.seed)
        while position < per_epoch:
            chosen = list(mine)[position * config.batch_size : (position + 1) * config.batch_size]
            batch = batch_of(data.train.images[chosen]), data.train.labels[chosen]
            names["step"](model, [batch], loss_of, optimizer)
            schedule.step()
            position += 1
            if stop_after == epoch * per_epoch + position:
                names["save"](path, model, optimizer, schedule, epoch, position)
                return None
        epoch, position = epoch + 1, 0
    return Trained(losses, _digest(module), _test(plan, model, data))


def _test(plan: Plan, model: nn.Module, data: Dataset) -> tuple[float, int, int]:
    loss, correct, total = plan.names["evaluate"](
        model.module, batch_of(data.test.images), data.test.labels, plan.rank, plan.size
    )
    return float(loss), int(correct), int(total)


def _digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
