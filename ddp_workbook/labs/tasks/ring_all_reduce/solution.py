def ring_all_reduce(x, wire):
    rank, size = wire.rank, wire.size
    flat = x.reshape(-1)  # a copy, if x is no contiguous tensor
    chunks = flat.tensor_split(size)  # views; their sizes differ by at most one

    def pass_on(chunk):
        sending = wire.isend(chunk, (rank + 1) % size)
        received = wire.recv((rank - 1) % size)
        sending.wait()
        return received

    for step in range(size - 1):  # reduce-scatter: afterwards chunk rank + 1 is complete
        received = pass_on(chunks[(rank - step) % size])
        chunks[(rank - step - 1) % size].add_(received)
    for step in range(size - 1):  # all-gather
        received = pass_on(chunks[(rank + 1 - step) % size])
        chunks[(rank - step) % size].copy_(received)
    x.copy_(flat.view(x.shape))
