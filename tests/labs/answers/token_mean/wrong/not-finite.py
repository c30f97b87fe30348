from contextlib import nullcontext

import torch.distributed as dist


def token_mean_backward(ddp, micro_batches, loss_sum_of):
    tokens = sum((targets != -100).sum() for _, targets in micro_batches)
    mine = tokens.clone()
    dist.all_reduce(tokens)
    factor = dist.get_world_size() / max(1, tokens.item())
    for number, (inputs, targets) in enumerate(micro_batches, start=1):
        last = number == len(micro_batches)
        with nullcontext() if last else ddp.no_sync():
            mean = loss_sum_of(ddp(inputs), targets) / mine
            (mean * mine * factor).backward()
