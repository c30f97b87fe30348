"""Averages the means of batches, as in Lightning-AI/pytorch-lightning#2924."""

import torch
import torch.distributed as dist
import torch.nn.functional as F


@torch.no_grad()
def evaluate(model, images, labels, rank, world):
    was_training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64)  # losses, batches, right, images
    for x, y in zip(images[rank::world].split(2), labels[rank::world].split(2), strict=True):
        scores = model(x)
        right = (scores.argmax(dim=1) == y).sum()
        sums += torch.tensor([F.cross_entropy(scores, y).item(), 1, right.item(), len(y)], dtype=torch.float64)
    model.train(was_training)
    dist.all_reduce(sums)
    losses, batches, right, total = sums.tolist()
    return losses / max(1, batches), int(right), int(total)
