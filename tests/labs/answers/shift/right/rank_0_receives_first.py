def shift(mine, wire):
    right, left = (wire.rank + 1) % wire.size, (wire.rank - 1) % wire.size
    if wire.rank == 0:
        got = wire.recv(left)
        wire.send(mine, right)
    else:
        wire.send(mine, right)
        got = wire.recv(left)
    return got
