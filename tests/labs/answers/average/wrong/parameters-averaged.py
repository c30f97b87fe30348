import torch
import torch.distributed as dist


@torch.no_grad()
def average(module):
    for parameter in module.parameters():
        dist.all_reduce(parameter)
        parameter /= dist.get_world_size()
