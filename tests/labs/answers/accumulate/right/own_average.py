import torch
import torch.distributed as dist


def step(ddp, micro_batches, loss_of, optimizer):
    """Leaves DDP's averaging out altogether."""
    total = torch.tensor([sum(len(y) for _, y in micro_batches)])
    dist.all_reduce(total)
    optimizer.zero_grad()
    for x, y in micro_batches:
        loss = loss_of(ddp.module(x), y) * len(y) / total.item()
        loss.backward()
    parameters = list(ddp.parameters())
    flat = torch.cat([p.grad.flatten() for p in parameters])
    dist.all_reduce(flat)
    for p, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad.copy_(grad.view_as(p))
    optimizer.step()
