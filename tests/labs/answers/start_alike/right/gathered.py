import torch
import torch.distributed as dist


def start_alike(module, source=0):
    """As Python objects: slow, and right."""
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    values = [{name: tensor.detach().clone() for name, tensor in named.items()}]
    dist.broadcast_object_list(values, src=source)
    with torch.no_grad():
        for name, tensor in named.items():
            tensor.copy_(values[0][name])
