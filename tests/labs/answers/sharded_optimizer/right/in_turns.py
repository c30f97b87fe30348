"""A torch optimizer itself; owners in turns, from the largest parameter down; an inner optimizer for each group."""

import torch
import torch.distributed as dist


class ShardedOptimizer(torch.optim.Optimizer):
    def __init__(self, params, cls, **kw):
        super().__init__(params, kw)
        rank, world = dist.get_rank(), dist.get_world_size()
        trained = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        by_size = sorted(trained, key=torch.numel)[::-1]
        self.turns = [(p, number % world) for number, p in enumerate(by_size)]
        mine = {id(p) for p, owner in self.turns if owner == rank}
        self.inner = []
        for group in self.param_groups:
            own = [p for p in group["params"] if id(p) in mine]
            if own:
                options = {key: value for key, value in group.items() if key != "params"}
                self.inner.append((group, cls(own, **options)))

    @torch.no_grad()
    def step(self, closure=None):
        for group, optimizer in self.inner:
            for key in group:
                if key != "params":
                    optimizer.param_groups[0][key] = group[key]
            optimizer.step()
        works = [dist.broadcast(p.data, src=owner, async_op=True) for p, owner in self.turns]
        for work in works:
            work.wait()
