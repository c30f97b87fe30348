"""Buckets, but all of them in finish()."""

import torch
import torch.distributed as dist


class Buckets:
    def __init__(self, module, cap_bytes):
        self.buckets, size = [], cap_bytes
        for parameter in reversed([each for each in module.parameters() if each.requires_grad]):
            size += parameter.nbytes
            if size > cap_bytes:
                self.buckets.append([])
                size = parameter.nbytes
            self.buckets[-1].append(parameter)

    def finish(self):
        for bucket in self.buckets:
            flat = torch.cat([each.grad.flatten() for each in bucket])
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
            for parameter, mean in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                parameter.grad.copy_(mean.view_as(parameter))
