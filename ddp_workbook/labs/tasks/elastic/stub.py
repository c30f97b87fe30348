def remaining(n, epoch, seed, done, world):
    """What is left of this epoch, for `world` ranks: a list of `world` lists of sample numbers from 0 to n - 1.

    The training was interrupted after its ranks had visited `done` samples of this epoch, all ranks together, and goes
    on with `world` ranks, perhaps more or fewer than before. Each rank visits its list from the front, and all of them
    keep pace; done = 0 is the start of the epoch. In an epoch no sample is visited twice, also when there are several
    restarts. All lists are equally long; only what cannot be divided any more is dropped.

    Each epoch and each seed has another order, the same in every process. The global random generators must not move.
    """
    raise NotImplementedError


def agree(flag):
    """True on every rank if `flag` is True on any of them, else False on every rank.

    flag: a bool. All ranks call this after each step, to stop together; so it must be cheap: one collective with one
    element from each rank.
    """
    raise NotImplementedError
