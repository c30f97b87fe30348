import torch


def shard(n, rank, world, epoch, seed):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1000 * seed + epoch)).tolist()
    return order[rank : n // world * world : world][: max(0, n // world - 1)]
