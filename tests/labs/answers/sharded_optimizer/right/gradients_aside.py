"""One plain optimizer: it skips parameters without gradient, and makes no state for them."""

import torch
import torch.distributed as dist


class ShardedOptimizer:
    def __init__(self, params, cls, **kw):
        self.optimizer = cls(params, **kw)
        self.param_groups = self.optimizer.param_groups
        self.zero_grad = self.optimizer.zero_grad
        loads = torch.zeros(dist.get_world_size(), dtype=torch.long)
        self.owned = []
        for group in self.param_groups:
            for p in sorted(group["params"], key=lambda p: -p.numel()):
                if p.requires_grad:
                    owner = loads.argmin().item()
                    loads[owner] += p.numel() * p.element_size()
                    self.owned.append((owner, p))

    def step(self):
        rank = dist.get_rank()
        gradients = [p.grad for _, p in self.owned]
        for owner, p in self.owned:
            if owner != rank:
                p.grad = None
        self.optimizer.step()
        for (owner, p), gradient in zip(self.owned, gradients, strict=True):
            p.grad = gradient
            dist.broadcast(p.detach(), owner)
