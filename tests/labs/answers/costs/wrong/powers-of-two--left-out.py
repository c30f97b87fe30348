"""The rounds end too early."""


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
    rank, distance, children = wire.rank, 1, []
    while 2 * distance <= wire.size and rank % (2 * distance) == 0:
        if rank + distance < wire.size:
            children.append(rank + distance)
            x += wire.recv(rank + distance)
        distance *= 2
    if rank:
        wire.send(x, rank - distance)
        x.copy_(wire.recv(rank - distance))
    for child in reversed(children):  # the one with the largest part of the tree below it comes first
        wire.send(x, child)


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
