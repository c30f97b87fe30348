"""Every rank gets the gradients of all ranks, and computes the mean of them, in the order of the ranks."""

import torch
import torch.distributed as dist


def average(module):
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, {name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    for name, p in module.named_parameters():
        grads = [each[name] for each in every if name in each]
        if grads:
            p.grad = torch.stack(grads).sum(0) / len(every)
