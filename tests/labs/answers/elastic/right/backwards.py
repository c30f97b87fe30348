"""In whole steps, the ranks in reverse order; flags are counted."""

import numpy as np
import torch
import torch.distributed as dist


def remaining(n, epoch, seed, done, world):
    order = np.random.default_rng([seed, epoch]).permutation(n)
    steps = (n - done) // world
    table = order[done : done + steps * world].reshape(steps, world)
    return [table[:, world - 1 - rank].tolist() for rank in range(world)]


def agree(flag):
    votes = torch.tensor([1.0 if flag else 0.0])
    dist.all_reduce(votes)
    return votes.item() > 0
