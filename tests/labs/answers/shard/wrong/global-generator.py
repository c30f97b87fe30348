import random


def shard(n, rank, world, epoch, seed):
    random.seed(1000 * seed + epoch)
    order = list(range(n))
    random.shuffle(order)
    return order[rank : n // world * world : world]
