"""A new optimizer in each step."""

import torch
import torch.distributed as dist


class ShardedOptimizer:
    def __init__(self, params, cls, **kw):
        self.param_groups = cls(params, **kw).param_groups  # that optimizer never takes a step, so it has no state
        self.owners, loads = {}, [0] * dist.get_world_size()
        trained = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        for p in sorted(trained, key=lambda p: p.nbytes, reverse=True):  # the largest first, to the emptiest rank
            self.owners[p] = loads.index(min(loads))
            loads[self.owners[p]] += p.nbytes
        self.cls, self.kw = cls, kw

    def _mine(self, params):
        return [p for p in params if self.owners.get(p) == dist.get_rank()]

    @torch.no_grad()
    def step(self):
        groups = [{**group, "params": self._mine(group["params"])} for group in self.param_groups]
        self.cls(groups, **self.kw).step()
        for p, owner in self.owners.items():
            dist.broadcast(p, owner)

    def zero_grad(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None
