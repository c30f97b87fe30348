"""DDP with a meter: gradient synchronization on and off, its cost, and the averaging of BatchNorm's buffers."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp_workbook.config import TrainConfig
from ddp_workbook.distributed.collectives import dist_sum
from ddp_workbook.distributed.comm_hooks import CommunicationMeter
from ddp_workbook.records.run import Communication


class MeteredDDP(DistributedDataParallel):
    """DDP that averages gradients through the configuration's communication hook and meters it.

    Buffers are not synchronized here: average_buffers() does that before an evaluation.
    """

    def __init__(self, model: nn.Module, device: torch.device, config: TrainConfig) -> None:
        known = inspect.signature(DistributedDataParallel).parameters
        no_broadcast = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
        super().__init__(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            **no_broadcast,  # the parameter was renamed in torch 2.13
            gradient_as_bucket_view=True,  # after the all-reduce gradients stay in the buckets: no copy back
        )
        self.meter = CommunicationMeter(config.comm_hook, sum(p.numel() for p in model.parameters()), device)
        self.register_comm_hook(None, self.meter.hook)

    @contextmanager
    def synced(self):
        """Average the gradients in the backward pass of this block."""
        yield
        self.meter.backward_ended()


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DDP; its parameter names do not contain DDP's prefix."""
    return model.module if isinstance(model, MeteredDDP) else model


def gradient_sync(model: nn.Module, enabled: bool) -> AbstractContextManager:
    """Context in which DDP's backward averages the gradients, or only adds them up on this rank (no_sync)."""
    if not isinstance(model, MeteredDDP):
        return nullcontext()
    return model.synced() if enabled else model.no_sync()


def take_communication(model: nn.Module) -> Communication | None:
    """Communication since the last call, mean over the ranks; None without DDP. All ranks must call it together."""
    if not isinstance(model, MeteredDDP):
        return None
    traffic = model.meter.take()
    mine = [sum(traffic.waited), traffic.collective_seconds, traffic.gradient_bytes, len(traffic.buckets)]
    device = next(model.parameters()).device
    waited, collective, size, count = (total / dist.get_world_size() for total in dist_sum(mine, device))
    return Communication(
        waited_seconds=waited, collective_seconds=collective, gradient_bytes=round(size), collectives=round(count)
    )


def add_communication(first: Communication | None, second: Communication | None) -> Communication | None:
    """The communication of two parts of an epoch together."""
    if first is None or second is None:
        return first or second
    names = Communication.model_fields
    return Communication(**{name: getattr(first, name) + getattr(second, name) for name in names})


@torch.no_grad()
def average_buffers(model: nn.Module, weight: float = 1.0) -> None:
    """Give every rank the mean of BatchNorm's running statistics, this rank's with a weight of mean 1 over the ranks.

    Each rank has seen only its own shard, and evaluation is split over ranks: they must all test one model, the one
    that is saved. Weighted by images, the running mean is that of the joined batches; the running variance misses how
    far the ranks' means lie apart. DDP's own broadcast_buffers would take rank 0's statistics, at every step. The mean
    is what timm's `--dist-bn reduce` computes.
    """
    if not dist.is_initialized():
        return
    floats = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if not floats:
        return
    joined = torch.cat([buffer.flatten() for buffer in floats]) * weight
    dist.all_reduce(joined)
    joined /= dist.get_world_size()
    for buffer, mean in zip(floats, joined.split([b.numel() for b in floats]), strict=True):
        buffer.copy_(mean.view_as(buffer))
