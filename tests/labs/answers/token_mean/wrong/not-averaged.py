from contextlib import nullcontext

import torch.distributed as dist


def token_mean_backward(ddp, micro_batches, loss_sum_of):
    tokens = sum((targets != -100).sum() for _, targets in micro_batches)
    dist.all_reduce(tokens)
    factor = dist.get_world_size() / max(1, tokens.item())
    for number, (inputs, targets) in enumerate(micro_batches, start=1):
        with nullcontext() if number == 1 else ddp.no_sync():
            (loss_sum_of(ddp(inputs), targets) * factor).backward()
