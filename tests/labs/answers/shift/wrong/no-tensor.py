def shift(mine, wire):
    sending = wire.isend(mine, (wire.rank + 1) % wire.size)
    wire.recv((wire.rank - 1) % wire.size)
    sending.wait()
