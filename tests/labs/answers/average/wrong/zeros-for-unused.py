"""Weight decay then moves parameters that nobody uses: pytorch/pytorch#28883."""

import torch
import torch.distributed as dist


def average(module):
    for parameter in module.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()
