"""TrainingState: everything that changes while a run trains; and the one place where a run is put together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import Precision
from ddp_workbook.distributed.ddp import MeteredDDP, unwrap
from ddp_workbook.distributed.process_group import World
from ddp_workbook.distributed.sharding import load_whole_weights, shard_model, shard_optimizer
from ddp_workbook.distributed.traffic import TrafficMeter
from ddp_workbook.records.run import Communication, EpochRecord
from ddp_workbook.training.balance import given_batch_sizes
from ddp_workbook.training.datasets import Dataset
from ddp_workbook.training.loader import steps_per_epoch, stream
from ddp_workbook.training.metrics import RunningMetrics
from ddp_workbook.training.models import build_model
from ddp_workbook.training.optim import build_optimizer, build_schedule


class Stopwatch:
    """Seconds of work so far, without the pauses."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.begun = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.begun

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of the block."""
        stopped = time.perf_counter()
        yield
        self.begun += time.perf_counter() - stopped


@dataclass
class PartialEpoch:
    """Progress within the current epoch on this rank."""

    metrics: RunningMetrics = field(default_factory=RunningMetrics)
    seconds: float = 0.0
    """Training time before this process resumed the epoch."""
    communication: Communication | None = None
    """Gradient communication of the epoch's earlier part, up to the last checkpoint."""
    clock: Stopwatch = field(default_factory=Stopwatch)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.metrics.steps

    def start_clock(self) -> None:
        self.clock = Stopwatch(self.seconds)


@dataclass
class TrainingState:
    """What changes while training. `epoch` counts the finished epochs, `history` has a record for each of them."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    precision: Precision
    epochs: int
    """Epochs of the whole run."""
    steps_per_epoch: int
    epoch: int = 0
    partial: PartialEpoch = field(default_factory=PartialEpoch)
    history: list[EpochRecord] = field(default_factory=list)
    batch_sizes: list[int] | None = None
    """Images of each rank in a batch, where --balance splits them; None: config.batch_size on every rank."""
    traffic: TrafficMeter = field(default_factory=TrafficMeter)

    @property
    def device(self) -> torch.device:
        return self.precision.device

    @property
    def step(self) -> int:
        """Optimizer steps since the run began."""
        return self.epoch * self.steps_per_epoch + self.partial.step

    @property
    def at_epoch_end(self) -> bool:
        """The current epoch has no step left."""
        return self.partial.step == self.steps_per_epoch

    @property
    def finished(self) -> bool:
        return self.epoch == self.epochs


def build_state(config: TrainConfig, data: Dataset, world: World, device: torch.device) -> TrainingState:
    """Model, optimizer and schedule at the start of a run, the same on every rank.

    Raises InputError when the precision asked for is not available, a rank's images cannot fill one step, or --balance
    has not one share for each rank.
    """
    torch.manual_seed(config.seed)  # the same weights on all ranks
    model = build_model(config, len(data.classes)).to(device, memory_format=torch.channels_last)
    if world.launched and config.shard == "full":
        model = shard_model(model, device)  # NEW: each rank keeps a part of every parameter
    elif world.launched:
        model = MeteredDDP(model, device, config)  # NEW: backward averages the gradients
    optimizer = _build_optimizer(model, config, world)
    steps = steps_per_epoch(len(data.train), config, world)
    schedule = build_schedule(optimizer, config, steps)
    state = TrainingState(model, optimizer, schedule, Precision.of(config, device), config.epochs, steps)
    state.batch_sizes = given_batch_sizes(config, world.size)
    return state


def _build_optimizer(model: nn.Module, config: TrainConfig, world: World) -> torch.optim.Optimizer:
    optimizer = build_optimizer(model, config, processes=world.size)  # its rate follows the global batch
    if world.launched and config.shard == "optimizer":
        shard_optimizer(optimizer)  # NEW: each rank updates its share of the parameters
    return optimizer


def restart(state: TrainingState, config: TrainConfig, data: Dataset, world: World, seed: int) -> None:
    """Begin again with new weights, the same on every rank, in the same model: DDP and its hook stay as they are."""
    torch.manual_seed(seed)
    load_whole_weights(unwrap(state.model), build_model(config, len(data.classes)).state_dict())
    state.optimizer = _build_optimizer(state.model, config, world)
    state.schedule = build_schedule(state.optimizer, config, state.steps_per_epoch)
    torch.manual_seed(stream(seed, world.rank))  # dropout differs between ranks
