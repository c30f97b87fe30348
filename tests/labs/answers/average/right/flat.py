"""All gradients in one vector, with a flag behind each."""

import torch
import torch.distributed as dist


@torch.no_grad()
def average(module):
    params = [p for p in module.parameters() if p.requires_grad]
    flat = torch.cat(
        [
            torch.cat([torch.zeros(p.numel()), torch.zeros(1)])
            if p.grad is None
            else torch.cat([p.grad.reshape(-1), torch.ones(1)])
            for p in params
        ]
    )
    dist.all_reduce(flat, op=dist.ReduceOp.SUM)
    flat.div_(dist.get_world_size())
    for p, part in zip(params, flat.split([p.numel() + 1 for p in params]), strict=True):
        p.grad = part[:-1].view_as(p).clone() if part[-1] else None
