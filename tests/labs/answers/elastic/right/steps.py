import random

import torch
import torch.distributed as dist


def remaining(n, epoch, seed, done, world):
    order = list(range(n))
    random.Random(f"{seed} {epoch}").shuffle(order)
    del order[n - done :]
    lists = [[] for _ in range(world)]
    while done + world <= n:
        for mine in lists:
            mine.append(order.pop())
        done += world
    return lists


def agree(flag):
    flags = [torch.zeros(1, dtype=torch.bool) for _ in range(dist.get_world_size())]
    dist.all_gather(flags, torch.tensor([flag]))
    return any(bool(each) for each in flags)
