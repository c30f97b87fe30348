import torch


def shard(n, rank, world, epoch, seed):
    generator = torch.Generator().manual_seed(1000 * seed + epoch)  # the same on all ranks
    order = torch.randperm(n, generator=generator).tolist()
    return order[rank : n // world * world : world]
