"""An integer mean, as in Lightning-AI/pytorch-lightning#21859."""

from contextlib import nullcontext

import torch.distributed as dist


def token_mean_backward(ddp, micro_batches, loss_sum_of):
    tokens = sum((targets != -100).sum() for _, targets in micro_batches)
    dist.all_reduce(tokens)
    tokens //= dist.get_world_size()
    factor = 1 / max(1, tokens.item())
    for number, (inputs, targets) in enumerate(micro_batches, start=1):
        last = number == len(micro_batches)
        with nullcontext() if last else ddp.no_sync():
            (loss_sum_of(ddp(inputs), targets) * factor).backward()
