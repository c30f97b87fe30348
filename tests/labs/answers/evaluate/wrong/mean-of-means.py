"""Averages each rank's mean."""

import torch
import torch.distributed as dist
import torch.nn.functional as F


@torch.no_grad()
def evaluate(model, images, labels, rank, world):
    n = len(images)
    images, labels = images[rank::world], labels[rank::world]
    was_training = model.training
    model.eval()
    scores = model(images)
    model.train(was_training)
    loss = F.cross_entropy(scores, labels)
    accuracy = (scores.argmax(dim=1) == labels).double().mean()
    means = torch.stack([loss, accuracy])
    dist.all_reduce(means)
    loss, accuracy = (means / world).tolist()
    return loss, round(accuracy * n), n
