def server(x, wire):
    """Sum x over all ranks, in place, by a server: rank 0 receives every other x, then sends the sum. wire: lab 1."""
    raise NotImplementedError


def tree(x, wire):
    """Sum x over all ranks, in place, by a tree, for any number of ranks.

    In each round every second rank that still takes part gives its partial sum to the one before it and drops out,
    all of them at the same time, until rank 0 has the sum. Then the sum goes back the same way, round by round.
    """
    raise NotImplementedError


def cost(kind, n, nbytes):
    """What a sum of tensors of `nbytes` bytes over n ranks costs: (sent, received, messages, steps).

    kind: "server", "tree" or "ring" (lab 2); n divides nbytes. Each number is that of the rank with the largest one:
    bytes sent, bytes received, messages sent; and the step at which the last rank has its result. In one step a rank
    can send one message and, at the same time, receive one, whatever their size.
    """
    raise NotImplementedError


def crossover(n, alpha, beta):
    """The bytes at which a ring and a tree of n ranks take the same time; 0 if the ring is never slower.
    A step takes alpha + beta * (bytes of a message) seconds, and a sum takes its steps, one after another."""
    raise NotImplementedError
