"""As in huggingface/transformers#35203."""

from contextlib import nullcontext

import torch.distributed as dist


def token_mean_backward(ddp, micro_batches, loss_sum_of):
    for number, (inputs, targets) in enumerate(micro_batches, start=1):
        tokens = (targets != -100).sum()
        dist.all_reduce(tokens)
        factor = dist.get_world_size() / max(1, tokens.item()) / len(micro_batches)
        last = number == len(micro_batches)
        with nullcontext() if last else ddp.no_sync():
            (loss_sum_of(ddp(inputs), targets) * factor).backward()
