"""Optimizer and learning rate.

The schedule "onecycle" is a cosine with warm-up: the shape of one-cycle (Smith & Topin 2019), without its cycle of the
momentum, which stays constant here.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ddp_workbook.config import TrainConfig

START_FACTOR = 1 / 25  # the warm-up begins at this share of the peak learning rate
END_FACTOR = 1e-4 / 25  # and the cosine ends here; both as in torch's OneCycleLR


def build_optimizer(model: nn.Module, config: TrainConfig, processes: int) -> torch.optim.Optimizer:
    """Nesterov SGD, Adam or AdamW, fused into one kernel, with the learning rate scaled to the global batch.

    Biases and normalization parameters, all of one dimension, are not decayed (Goyal et al. 2017; He et al. 2019). The
    last linear layer has its own learning rate, config.head_lr_scale times that of the others.
    """
    head = {id(p) for p in [m for m in model.modules() if isinstance(m, nn.Linear)][-1].parameters()}
    lr = config.peak_lr(processes)
    alike: dict[tuple[float, float], list[nn.Parameter]] = {}  # one kernel updates all with the same rate and decay
    for p in model.parameters():
        settings = lr * (config.head_lr_scale if id(p) in head else 1.0), config.weight_decay if p.ndim > 1 else 0.0
        alike.setdefault(settings, []).append(p)
    groups = [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in alike.items()]
    if config.optimizer == "sgd":
        fused = config.shard != "full"  # torch has no fused SGD for sharded tensors
        return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=fused)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer](groups, lr=lr, fused=True)


def learning_rate_factor(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Share of the peak learning rate for optimizer step `step`, counted from 0 over the whole run."""
    last = config.epochs * steps_per_epoch - 1
    warmup = config.warmup * (last + 1) - 1  # the step that reaches the peak
    if step < warmup:
        share = step / warmup
        climbed = (1 - math.cos(math.pi * share)) / 2 if config.schedule == "onecycle" else share
        return START_FACTOR + (1 - START_FACTOR) * climbed
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "step":
        return config.step_gamma ** (step // (config.step_epochs * steps_per_epoch))
    share = (step - warmup) / max(last - warmup, 1)
    return END_FACTOR + (1 - END_FACTOR) * (1 + math.cos(math.pi * min(share, 1.0))) / 2


def build_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig, steps_per_epoch: int) -> LambdaLR:
    """Sets the learning rate before each optimizer step."""
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps_per_epoch, config))


def last_rate(schedule: LRScheduler, config: TrainConfig, steps_per_epoch: int) -> float:
    """Learning rate of the optimizer step just taken (the schedule itself already stands at the next one)."""
    return schedule.base_lrs[0] * learning_rate_factor(schedule.last_epoch - 1, steps_per_epoch, config)
