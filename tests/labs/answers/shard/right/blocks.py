import random


def shard(n, rank, world, epoch, seed):
    order = list(range(n))
    random.Random(f"{seed}-{epoch}").shuffle(order)
    each = n // world
    return order[rank * each : (rank + 1) * each]
