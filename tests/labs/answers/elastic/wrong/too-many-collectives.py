import torch
import torch.distributed as dist


def remaining(n, epoch, seed, done, world):
    generator = torch.Generator().manual_seed(1000 * seed + epoch)
    left = torch.randperm(n, generator=generator).tolist()[done:]
    return [left[rank : len(left) // world * world : world] for rank in range(world)]


def agree(flag):
    flags = [None] * dist.get_world_size()
    dist.all_gather_object(flags, flag)
    return any(flags)
