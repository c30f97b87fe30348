"""Neighbours to the same rank, and one all-gather of flat pieces, which are filled up to the same length."""

import torch
import torch.distributed as dist
from torch.nn.utils import parameters_to_vector


class ShardedOptimizer:
    def __init__(self, params, cls, **kw):
        everything = cls(params, **kw)
        self.param_groups = everything.param_groups
        world = dist.get_world_size()
        trained = [p for g in self.param_groups for p in g["params"] if p.requires_grad]
        total, before = sum(p.numel() for p in trained), 0
        self.pieces = [[] for _ in range(world)]
        for p in trained:
            self.pieces[before * world // total].append(p)
            before += p.numel()
        self.length = max(sum(p.numel() for p in piece) for piece in self.pieces)
        mine = set(self.pieces[dist.get_rank()])
        pairs = [(group, p) for group in self.param_groups for p in group["params"] if p in mine]
        self.optimizers = [cls([{**group, "params": [p]}], **kw) for group, p in pairs]
        self.groups = [group for group, _ in pairs]

    def zero_grad(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.zero_()

    def step(self):
        for optimizer, group in zip(self.optimizers, self.groups, strict=True):
            optimizer.param_groups[0].update({key: value for key, value in group.items() if key != "params"})
            optimizer.step()
        with torch.no_grad():
            piece = torch.zeros(self.length)
            own = self.pieces[dist.get_rank()]
            if own:
                piece[: sum(p.numel() for p in own)] = parameters_to_vector(own)
            every = [torch.empty(self.length) for _ in self.pieces]
            dist.all_gather(every, piece)
            for flat, params in zip(every, self.pieces, strict=True):
                begin = 0
                for p in params:
                    p.copy_(flat[begin : begin + p.numel()].view_as(p))
                    begin += p.numel()
