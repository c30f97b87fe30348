import torch
import torch.distributed as dist


@torch.no_grad()
def start_alike(module, source=0):
    for tensor in [*module.parameters(), *module.buffers()]:
        values = tensor.contiguous()
        dist.all_reduce(values)
        tensor.copy_(values / dist.get_world_size())
