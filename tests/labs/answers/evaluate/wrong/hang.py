"""A collective in each batch, and one rank has a batch more than another: pytorch/pytorch#22584."""

import torch
import torch.distributed as dist
import torch.nn.functional as F


@torch.no_grad()
def evaluate(model, images, labels, rank, world):
    was_training = model.training
    model.eval()
    totals = torch.zeros(3, dtype=torch.float64)
    for x, y in zip(images[rank::world].split(5), labels[rank::world].split(5), strict=True):
        scores = model(x)
        right = (scores.argmax(dim=1) == y).sum()
        loss = F.cross_entropy(scores, y, reduction="sum")
        sums = torch.stack([loss, right.double(), torch.tensor(len(y)).double()])
        dist.all_reduce(sums)
        totals += sums
    model.train(was_training)
    loss, right, total = totals.tolist()
    return loss / max(1, total), int(right), int(total)
