"""PyTorch's own: the frozen parameters, which have no state, are split like the others."""

from torch.distributed.optim import ZeroRedundancyOptimizer


class ShardedOptimizer(ZeroRedundancyOptimizer):
    def __init__(self, params, cls, **kw):
        super().__init__(params, optimizer_class=cls, **kw)
