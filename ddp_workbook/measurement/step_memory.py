"""Bytes of a training step: what each rank keeps, sharded or not, and what waits for the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn

from ddp_workbook.analysis.memory import STATE_COPIES, Shard, StepBytes
from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import Precision, choose_threads
from ddp_workbook.distributed.sharding import local_bytes
from ddp_workbook.distributed.traffic import MEASURED_STEP
from ddp_workbook.measurement.benchmark import time_training
from ddp_workbook.measurement.workers import TrainingSession, Worker, WorkerPool
from ddp_workbook.records.rank_bytes import RankBytes
from ddp_workbook.runs.outputs import bytes_of_rank
from ddp_workbook.training.models import build_model, count_parameters
from ddp_workbook.training.optim import build_optimizer

SHARDINGS: tuple[Shard, ...] = ("none", "optimizer", "full")
CLASSES = 10


def measure_sharding(config: TrainConfig, counts: Sequence[int]) -> dict[tuple[str, int], list[RankBytes]]:
    """The bytes of each rank, for each way of sharding and each number of processes, one thread each.

    Every process has the configuration's batch size. One process has no group: it is measured once, unsharded.
    """
    measured = {}
    for ranks in counts:
        with WorkerPool(f"{ranks} ranks", config, ranks, threads=1) as pool:
            for shard in SHARDINGS:
                if ranks > 1 or shard == "none":
                    measured[shard, ranks] = pool.call(_bytes_after_steps, replace(config, shard=shard))
    return measured


def _bytes_after_steps(worker: Worker, config: TrainConfig) -> RankBytes:
    session: TrainingSession = worker.session(config, True)
    for _ in range(MEASURED_STEP):
        with session.state.traffic.step():
            session.step()
    counted = bytes_of_rank(session.state)
    worker.forget()
    return counted


def time_sharding(config: TrainConfig, ranks: int, rounds: int, steps: int) -> dict[Shard, list[float]]:
    """Seconds of a step for each way of sharding, one value per round; in a round each way takes its turn.

    Every process has the configuration's batch size, and its share of the cores. Each way has processes of its own,
    since fully sharded ones use memory in another way (devices.prepare_cpu).
    """
    seconds: dict[Shard, list[float]] = {shard: [] for shard in SHARDINGS}
    threads = choose_threads(config.threads, ranks)
    with ExitStack() as stack:
        pools = {
            shard: stack.enter_context(
                WorkerPool(f"{ranks} ranks, {shard}", replace(config, shard=shard), ranks, threads)
            )
            for shard in SHARDINGS
        }
        for number in range(-1, rounds):  # the first round, -1, is a warm-up
            for turn in range(len(SHARDINGS)):
                shard = SHARDINGS[(number + turn) % len(SHARDINGS)]  # no way always goes first
                of_ranks = pools[shard].call(time_training, replace(config, shard=shard), True, steps, None)
                if number >= 0:
                    seconds[shard].append(max(taken for taken, _ in of_ranks) / steps)
    return seconds


def measure_step(config: TrainConfig) -> StepBytes:
    """Bytes of one step of a recipe's network on this process, in fp32, on images of noise."""
    model, images, labels = _example(config, config.batch_size)
    precision = Precision(torch.device("cpu"), "fp32")
    activations = activation_bytes(model, images, labels, precision)
    optimizer = build_optimizer(model, config, processes=1)
    nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
    kept = [value for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return StepBytes(local_bytes(model.parameters()), local_bytes(gradients), local_bytes(kept), activations)


def predict_step(config: TrainConfig) -> StepBytes:
    """The same by the number of parameters, and for the activations by two batches of a quarter and half the images."""
    precision = Precision(torch.device("cpu"), "fp32")
    small, large = config.batch_size // 4, config.batch_size // 2
    measured = [(n, activation_bytes(*_example(config, n), precision)) for n in (small, large)]
    parameters = 4 * count_parameters(_example(config, 1)[0])
    state = STATE_COPIES[config.optimizer] * parameters
    return StepBytes(parameters, parameters, state, predict_activations(*measured, config.batch_size))


def _example(config: TrainConfig, images: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The recipe's network, and a batch for it."""
    size = config.image_size
    batch = torch.randn(images, config.channels, size, size), torch.randint(CLASSES, (images,))
    return build_model(config, CLASSES).train(), *batch


def activation_bytes(model: nn.Module, images: Tensor, labels: Tensor, precision: Precision) -> int:
    """Memory that a forward pass leaves for the backward pass: storages that autograd keeps, without the parameters'.

    images (n, channels, size, size), labels (n,), on the model's device.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, tuple[Tensor, int]] = {}  # with the tensor, so that no other one gets its address

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), precision.autocast():
        nn.functional.cross_entropy(model(images), labels)
    return sum(size for _, size in kept.values())


def predict_activations(small: tuple[int, int], large: tuple[int, int], batch_size: int) -> float:
    """Bytes of activations at another batch size, from two measured (batch size, bytes): they grow with the images."""
    per_image = (large[1] - small[1]) / (large[0] - small[0])
    return small[1] + per_image * (batch_size - small[0])
