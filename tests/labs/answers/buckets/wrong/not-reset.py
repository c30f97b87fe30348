"""The buffers live from step to step, and are only added to."""

from functools import partial

import torch
import torch.distributed as dist


class Bucket:
    def __init__(self):
        self.params, self.offsets, self.numel = [], [], 0

    def bytes_with(self, p):
        return 4 * (self.numel + p.numel())

    def add(self, p):
        self.params.append(p)
        self.offsets.append(self.numel)
        self.numel += p.numel()

    def start(self):
        self.flat = torch.zeros(self.numel)
        self.missing, self.work = len(self.params), None

    def fill(self, offset, p):
        self.flat[offset : offset + p.numel()] += p.grad.view(-1) / dist.get_world_size()
        self.missing -= 1
        if self.missing == 0:
            self.work = dist.all_reduce(self.flat, async_op=True)


class Buckets:
    def __init__(self, module, cap_bytes):
        self.all = [Bucket()]
        for p in list(module.parameters())[::-1]:
            if not p.requires_grad:
                continue
            if self.all[-1].params and self.all[-1].bytes_with(p) > cap_bytes:
                self.all.append(Bucket())
            bucket = self.all[-1]
            p.register_post_accumulate_grad_hook(partial(bucket.fill, bucket.numel))
            bucket.add(p)
        for bucket in self.all:
            bucket.start()

    def finish(self):
        for bucket in self.all:
            bucket.work.wait()
            for p, offset in zip(bucket.params, bucket.offsets, strict=True):
                p.grad.copy_(bucket.flat[offset : offset + p.numel()].view(p.shape))
            bucket.missing = len(bucket.params)
