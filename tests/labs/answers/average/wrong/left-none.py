import torch
import torch.distributed as dist


def average(module):
    ranks, parameters = dist.get_world_size(), list(module.parameters())
    users = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
    dist.all_reduce(users)  # on how many ranks each parameter has a gradient
    for parameter, count in zip(parameters, users.tolist(), strict=True):
        if not count:
            continue
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        dist.all_reduce(grad)
        grad /= ranks
