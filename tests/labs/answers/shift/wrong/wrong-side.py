def shift(mine, wire):
    s = wire.isend(mine, (wire.rank - 1) % wire.size)
    got = wire.recv((wire.rank + 1) % wire.size)
    s.wait()
    return got
