import random


def shard(n, rank, world, epoch, seed):
    each = n // world
    mine = list(range(rank * each, (rank + 1) * each))
    random.Random(f"{seed}-{epoch}").shuffle(mine)
    return mine
