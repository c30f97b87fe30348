import torch.distributed as dist


def ring_all_reduce(x, wire):
    dist.all_reduce(x)
