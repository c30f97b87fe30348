def shift(mine, wire):
    passing = mine
    for _ in range(max(1, wire.size - 2)):
        sending = wire.isend(passing, (wire.rank + 1) % wire.size)
        passing = wire.recv((wire.rank - 1) % wire.size)
        sending.wait()
    return passing
