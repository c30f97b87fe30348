"""A tensor's hook gets the gradient of this backward pass alone: Picotron's step 5 reduces in such hooks."""

import torch.distributed as dist


def step(ddp, micro_batches, loss_of, optimizer):
    samples = sum(len(targets) for _, targets in micro_batches)
    optimizer.zero_grad()

    def average(grad):
        grad = grad / dist.get_world_size()
        dist.all_reduce(grad)
        return grad

    with ddp.no_sync():
        for number, (inputs, targets) in enumerate(micro_batches, start=1):
            last = number == len(micro_batches)
            hooks = [p.register_hook(average) for p in ddp.parameters()] if last else []
            loss = loss_of(ddp(inputs), targets)
            (loss * len(targets) / samples).backward()
    for hook in hooks:
        hook.remove()
    optimizer.step()
