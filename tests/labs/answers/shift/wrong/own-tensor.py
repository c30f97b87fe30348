def shift(mine, wire):
    s = wire.isend(mine, (wire.rank + 1) % wire.size)
    wire.recv((wire.rank - 1) % wire.size)
    s.wait()
    return mine
