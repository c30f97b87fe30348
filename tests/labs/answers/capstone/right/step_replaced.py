import torch.distributed as dist
from torch import nn


class OwnDDP(nn.Module):
    """Without a hook: the optimizer's step is replaced by one that finishes first."""

    def __init__(self, module, optimizer, cap_bytes):
        super().__init__()
        start_alike(module, 0)
        self.module = module
        buckets = Buckets(module, cap_bytes)
        step = optimizer.step

        def finish_and_step(*arguments, **options):
            buckets.finish()
            return step(*arguments, **options)

        optimizer.step = finish_and_step

    def forward(self, inputs):
        assert dist.is_initialized()
        return self.module(inputs)

    def no_sync(self):
        raise NotImplementedError("one batch in each step")
