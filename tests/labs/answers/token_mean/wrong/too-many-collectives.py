from contextlib import nullcontext

import torch.distributed as dist


def token_mean_backward(ddp, micro_batches, loss_sum_of):
    tokens = 0
    for _, targets in micro_batches:
        here = (targets != -100).sum()
        dist.all_reduce(here)
        tokens += here
    factor = dist.get_world_size() / max(1, tokens.item())
    for number, (inputs, targets) in enumerate(micro_batches, start=1):
        last = number == len(micro_batches)
        with nullcontext() if last else ddp.no_sync():
            (loss_sum_of(ddp(inputs), targets) * factor).backward()
