def shift(mine, wire):
    everything = {}
    sendings = [wire.isend(mine, other) for other in range(wire.size) if other != wire.rank]
    for other in range(wire.size):
        if other != wire.rank:
            everything[other] = wire.recv(other)
    for sending in sendings:
        sending.wait()
    return everything[(wire.rank - 1) % wire.size]
