"""A bucket is sent when the next gradient does not fit in."""

import torch
import torch.distributed as dist


class Buckets:
    def __init__(self, module, cap_bytes):
        self.cap_bytes, self.filling, self.sent = cap_bytes, [], []
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self.add)

    def add(self, parameter):
        if self.filling and sum(each.nbytes for each in self.filling) + parameter.nbytes > self.cap_bytes:
            self.send()
        self.filling.append(parameter)

    def send(self):
        flat = torch.cat([each.grad.flatten() for each in self.filling])
        self.sent.append((self.filling, flat, dist.all_reduce(flat, async_op=True)))
        self.filling = []

    def finish(self):
        for bucket, flat, work in self.sent:
            work.wait()
            flat /= dist.get_world_size()
            for parameter, mean in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                parameter.grad.copy_(mean.view_as(parameter))
        self.filling, self.sent = [], []
