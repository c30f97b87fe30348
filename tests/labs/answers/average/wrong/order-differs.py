"""Sets have no order: compare deepspeedai/DeepSpeed#2343."""

import torch
import torch.distributed as dist


def average(module):
    parameters = {parameter for parameter in module.parameters() if parameter.requires_grad}
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()
