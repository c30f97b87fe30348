def shift(mine, wire):
    right, left = (wire.rank + 1) % wire.size, (wire.rank - 1) % wire.size
    if wire.rank % 2 == 0:
        wire.send(mine, right)
        return wire.recv(left)
    got = wire.recv(left)
    wire.send(mine, right)
    return got
