def shift(mine, wire):
    r, l = (wire.rank + 1) % wire.size, (wire.rank - 1) % wire.size
    if wire.rank % 2 == 0:
        wire.send(mine, r)
        return wire.recv(l)
    got = wire.recv(l)
    wire.send(mine, r)
    return got
