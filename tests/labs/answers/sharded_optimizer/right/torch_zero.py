"""PyTorch's own, without the frozen parameters, which it would split like the others."""

from torch.distributed.optim import ZeroRedundancyOptimizer


class ShardedOptimizer(ZeroRedundancyOptimizer):
    def __init__(self, params, cls, **kw):
        params = list(params)
        if isinstance(params[0], dict):
            params = [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in params]
        else:
            params = [p for p in params if p.requires_grad]
        super().__init__(params, optimizer_class=cls, **kw)
