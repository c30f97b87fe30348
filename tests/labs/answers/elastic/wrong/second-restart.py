import torch
import torch.distributed as dist


def remaining(n, epoch, seed, done, world):
    generator = torch.Generator().manual_seed(1000 * seed + epoch)
    left = torch.randperm(n, generator=generator).tolist()[done:]
    if done:
        shuffled = torch.randperm(len(left), generator=generator.manual_seed(1000 * seed + epoch + done)).tolist()
        left = [left[place] for place in shuffled]
    return [left[rank : len(left) // world * world : world] for rank in range(world)]


def agree(flag):
    anyone = torch.tensor(int(flag))
    dist.all_reduce(anyone, dist.ReduceOp.MAX)
    return bool(anyone)
