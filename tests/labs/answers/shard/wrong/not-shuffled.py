def shard(n, rank, world, epoch, seed):
    return list(range(n))[rank : n // world * world : world]
