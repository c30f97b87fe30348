def shard(n, rank, world, epoch, seed):
    """The samples that this rank visits in this epoch, as a list of whole numbers from 0 to n - 1.

    Every rank calls it for itself. All of them get equally many samples, no sample twice; what cannot be divided is
    dropped. Each epoch has another order, and a sample's rank changes from epoch to epoch. Asked again, the answer is
    the same. Another seed gives other orders: with seed + epoch as the only number, seed 5 in epoch 3 would give that
    of seed 3 in epoch 5. The global random generators of Python and torch must not move.
    """
    raise NotImplementedError
