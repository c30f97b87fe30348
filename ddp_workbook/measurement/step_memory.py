"""Bytes of a training step: what each rank keeps, sharded or not, and what waits for the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import Precision
from ddp_workbook.distributed.traffic import MEASURED_STEP
from ddp_workbook.measurement.workers import TrainingSession, Worker, WorkerPool
from ddp_workbook.records.rank_bytes import RankBytes
from ddp_workbook.runs.outputs import bytes_of_rank


def measure_sharding(config: TrainConfig, counts: Sequence[int]) -> dict[tuple[str, int], list[RankBytes]]:
    """The bytes of each rank, for each way of sharding and each number of processes, one thread each.

    Every process has the configuration's batch size. One process has no group: it is measured once, unsharded.
    """
    measured = {}
    for ranks in counts:
        with WorkerPool(f"{ranks} ranks", config, ranks, threads=1) as pool:
            for shard in ("none", "optimizer", "full"):
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
