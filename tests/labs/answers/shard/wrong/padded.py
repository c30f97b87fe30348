import torch


def shard(n, rank, world, epoch, seed):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1000 * seed + epoch)).tolist()
    order += order[: -n % world]
    return order[rank::world]
