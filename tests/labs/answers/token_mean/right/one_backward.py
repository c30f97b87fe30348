import torch
import torch.distributed as dist


def token_mean_backward(ddp, micro_batches, loss_sum_of):
    counts = [None] * dist.get_world_size()
    mine = torch.tensor([(targets != -100).sum() for _, targets in micro_batches]).sum()
    counts = [torch.zeros_like(mine) for _ in counts]
    dist.all_gather(counts, mine)
    total = torch.stack(counts).sum()
    scale = len(counts) / total if total else 0.0
    inputs = torch.cat([inputs for inputs, _ in micro_batches])
    targets = torch.cat([targets for _, targets in micro_batches])
    (loss_sum_of(ddp(inputs), targets) * scale).backward()
