from contextlib import nullcontext

from torch import nn


class OwnDDP(nn.Module):
    def __init__(self, module, optimizer, cap_bytes):
        super().__init__()
        start_alike(module)
        self.module, self.buckets = module, Buckets(module, cap_bytes)
        optimizer.register_step_post_hook(lambda *_: self.buckets.finish())

    def forward(self, *inputs):
        return self.module(*inputs)

    def no_sync(self):
        return nullcontext()
