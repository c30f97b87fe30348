"""A reduced loss has the gradient of the own part: verl-project/verl-SpeCo#29."""

from contextlib import nullcontext

import torch.distributed as dist


def token_mean_backward(ddp, micro_batches, loss_sum_of):
    tokens = sum((targets != -100).sum() for _, targets in micro_batches)
    dist.all_reduce(tokens)
    factor = 1 / max(1, tokens.item())
    for number, (inputs, targets) in enumerate(micro_batches, start=1):
        last = number == len(micro_batches)
        with nullcontext() if last else ddp.no_sync():
            loss = loss_sum_of(ddp(inputs), targets) * factor
            dist.all_reduce(loss.detach())
            loss.backward()
