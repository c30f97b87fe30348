import torch


def step(ddp, micro_batches, loss_of, optimizer):
    inputs, targets = (torch.cat(parts) for parts in zip(*micro_batches, strict=True))
    optimizer.zero_grad()
    loss_of(ddp(inputs), targets).backward()
    optimizer.step()
