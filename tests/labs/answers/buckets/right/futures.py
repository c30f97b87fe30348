"""The gradients are written back as soon as a collective ends; finish() waits for that."""

import torch
import torch.distributed as dist


class Buckets:
    def __init__(self, module, cap_bytes):
        groups, room = [], -1
        for p in reversed(list(module.parameters())):
            if p.requires_grad:
                room -= p.numel() * p.element_size()
                if room < 0:
                    groups.append([])
                    room = cap_bytes - p.numel() * p.element_size()
                groups[-1].append(p)
        self.futures, self.left = [], {}
        for group in groups:
            for p in group:
                p.register_post_accumulate_grad_hook(lambda p, group=group: self.arrived(group))

    def arrived(self, group):
        left = self.left[id(group)] = self.left.get(id(group), len(group)) - 1
        if left == 0:
            del self.left[id(group)]
            flat = torch.cat([p.grad.ravel() for p in group])
            future = dist.all_reduce(flat, async_op=True).get_future()
            self.futures.append(future.then(lambda _: self.write_back(group, flat / dist.get_world_size())))

    def write_back(self, group, flat):
        begin = 0
        for p in group:
            p.grad.view(-1)[:] = flat[begin : begin + p.numel()]
            begin += p.numel()

    def finish(self):
        torch.futures.wait_all(self.futures)
        self.futures = []
