import torch
import torch.distributed as dist


@torch.no_grad()
def start_alike(module, source=0):
    for child in module.modules():
        for name, tensor in [*child.named_parameters(recurse=False)]:
            values = tensor.detach().clone().contiguous()
            dist.broadcast(values, source)
            setattr(child, name, torch.nn.Parameter(values, tensor.requires_grad))
    for tensor in module.buffers():
        dist.broadcast(tensor, source)
