def shift(mine, wire):
    s = wire.isend(mine, (wire.rank + 1) % wire.size)
    mine.copy_(wire.recv((wire.rank - 1) % wire.size))
    s.wait()
    return mine.clone()
