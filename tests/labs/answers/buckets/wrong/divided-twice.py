"""Per bucket, and again at the end."""

import torch
import torch.distributed as dist


class Buckets:
    def __init__(self, module, cap_bytes):
        self.buckets, size = [], cap_bytes
        for parameter in reversed([each for each in module.parameters() if each.requires_grad]):
            size += parameter.nbytes
            if size > cap_bytes:
                self.buckets.append([])
                size = parameter.nbytes
            self.buckets[-1].append(parameter)
            parameter.register_post_accumulate_grad_hook(self._ready)
        self.ready = set()  # parameters whose gradients are there
        self.sent = []  # for each bucket so far: its gradients in one tensor, and the collective that adds them up

    def _ready(self, parameter):
        self.ready.add(parameter)
        while len(self.sent) < len(self.buckets) and self.ready.issuperset(self.buckets[len(self.sent)]):
            flat = torch.cat([each.grad.flatten() for each in self.buckets[len(self.sent)]]) / dist.get_world_size()
            self.sent.append((flat, dist.all_reduce(flat, async_op=True)))

    def finish(self):
        for bucket, (flat, work) in zip(self.buckets, self.sent, strict=True):
            work.wait()
            flat /= dist.get_world_size()
            for parameter, mean in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                parameter.grad.copy_(mean.view_as(parameter))
        self.ready.clear()
        self.sent.clear()
