"""Before and after."""

import torch
import torch.distributed as dist


def average(module):
    ranks, parameters = dist.get_world_size(), list(module.parameters())
    users = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
    dist.all_reduce(users)  # on how many ranks each parameter has a gradient
    for parameter, count in zip(parameters, users.tolist(), strict=True):
        if not count:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad /= ranks
        dist.all_reduce(parameter.grad)
        parameter.grad /= ranks
