"""The own gradient first, then those of the others: two ranks add in the same order, three do not."""

import torch
import torch.distributed as dist


def average(module):
    rank, every = dist.get_rank(), [None] * dist.get_world_size()
    dist.all_gather_object(every, [p.grad for p in module.parameters()])
    for number, p in enumerate(module.parameters()):
        grads = [each[number] for each in every[rank:] + every[:rank] if each[number] is not None]
        if grads:
            total = torch.zeros_like(p)
            for grad in grads:
                total = total + grad
            p.grad = total / len(every)
