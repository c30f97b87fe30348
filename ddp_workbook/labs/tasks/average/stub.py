def average(module):
    """Called on every rank after backward(): replace each gradient by its mean over the ranks.

    module: an nn.Module, the same on every rank; each rank has called backward() on samples of its own. Afterwards
    every parameter's .grad is the mean, with the same bits on all ranks; the parameters themselves do not change.
    A rank that has not used a parameter has .grad None there: it counts as zeros, and gets the mean like the others.
    Where .grad is None on all ranks, as for a frozen parameter, it stays None. The process group exists.
    """
    raise NotImplementedError
