from contextlib import nullcontext

from torch import nn


class OwnDDP(nn.Module):
    def __init__(self, module, optimizer, cap_bytes):
        super().__init__()
        start_alike(module)
        self.module = module

    def forward(self, *inputs):
        return self.module(*inputs)

    def no_sync(self):
        return nullcontext()
