import torch
import torch.distributed as dist
import torch.nn.functional as F


def evaluate(model, images, labels, rank, world):
    """Equal shares, with repeated images that do not count."""
    n = len(images)
    if n == 0:
        return 0.0, 0, 0
    index = torch.arange(rank, -(-n // world) * world, world)
    counts = (index < n).double()
    x, y = images[index % n], labels[index % n]
    was = model.training
    model.eval()
    with torch.no_grad():
        scores = model(x)
    if was:
        model.train()
    losses = F.cross_entropy(scores, y, reduction="none") * counts
    hits = (scores.argmax(-1) == y) * counts
    gathered = [torch.zeros(3).double() for _ in range(world)]
    dist.all_gather(gathered, torch.stack([losses.sum(), hits.sum(), counts.sum()]))
    loss, right, total = sum(gathered).tolist()
    return loss / total, int(right), int(total)
