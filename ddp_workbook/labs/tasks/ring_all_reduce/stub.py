def ring_all_reduce(x, wire):
    """Add up x over all ranks, in place: afterwards every rank's x is the sum.

    x: a tensor of any shape, type and size (also of 0 elements, also a transposed view). Cut it into wire.size chunks.
    In the first half each rank passes a chunk to the right N - 1 times and adds what comes from the left; then every
    rank has one chunk that is complete. In the second half the complete chunks go round. Each rank sends 2(N - 1)
    chunks in all, and every rank sends at the same time. The interface of `wire` is that of the lab shift.
    """
    raise NotImplementedError
