def shift(mine, wire):
    wire.isend(mine, (wire.rank + 1) % wire.size)
    return wire.recv((wire.rank - 1) % wire.size)
