from contextlib import nullcontext

import torch.distributed as dist
from torch import nn


class OwnDDP(nn.Module):
    def __init__(self, module, optimizer, cap_bytes):
        super().__init__()
        start_alike(module)
        self.module, self.buckets = module, Buckets(module, cap_bytes)
        optimizer.register_step_pre_hook(self.average)

    def average(self, *_):
        self.buckets.finish()
        for parameter in self.module.parameters():  # Adam does not notice
            parameter.grad /= dist.get_world_size()

    def forward(self, *inputs):
        return self.module(*inputs)

    def no_sync(self):
        return nullcontext()
