def shift(mine, wire):
    r, l = (wire.rank + 1) % wire.size, (wire.rank - 1) % wire.size
    if wire.rank == 0:
        got = wire.recv(l)
        wire.send(mine, r)
    else:
        wire.send(mine, r)
        got = wire.recv(l)
    return got
