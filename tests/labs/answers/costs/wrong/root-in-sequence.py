"""To rank 0 by a tree, and back from rank 0 alone."""


def server(x, wire):
    if wire.rank:
        wire.send(x, 0)
        x.copy_(wire.recv(0))
        return
    for client in range(1, wire.size):
        x += wire.recv(client)
    for client in range(1, wire.size):
        wire.send(x, client)


def tree(x, wire):
    rank, distance = wire.rank, 1
    while distance < wire.size and rank % (2 * distance) == 0:
        if rank + distance < wire.size:
            x += wire.recv(rank + distance)
        distance *= 2
    if rank:
        wire.send(x, rank - distance)
        x.copy_(wire.recv(0))
    else:
        for other in range(1, wire.size):
            wire.send(x, other)


def cost(kind, n, nbytes):
    rounds = (n - 1).bit_length()  # log2(n), rounded up
    messages, size, steps = {
        "server": (n - 1, nbytes, 2 * (n - 1)),  # rank 0 receives all, one after another, and then sends all
        "tree": (rounds, nbytes, 2 * rounds),  # rank 0 receives in each round down, and sends in each round up
        "ring": (2 * (n - 1), nbytes // n, 2 * (n - 1)),  # everybody sends a chunk in each step
    }[kind]
    return messages * size, messages * size, messages, steps


def crossover(n, alpha, beta):
    tree, ring = (n - 1).bit_length(), n - 1  # steps, each way
    # tree * (alpha + beta * size) = ring * (alpha + beta * size / n)
    return (ring - tree) * alpha / ((tree - ring / n) * beta)
