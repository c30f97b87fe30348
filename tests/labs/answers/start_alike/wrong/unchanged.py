import torch
import torch.distributed as dist


@torch.no_grad()
def start_alike(module, source=0):
    for tensor in module.state_dict().values():
        dist.broadcast(tensor.clone().contiguous(), source)
