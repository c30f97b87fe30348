def step(ddp, micro_batches, loss_of, optimizer):
    *early, late = micro_batches
    n = sum(y.shape[0] for x, y in micro_batches)

    def both_ways(x, y):
        loss_of(ddp(x), y).mul(y.shape[0] / n).backward()

    optimizer.zero_grad()
    with ddp.no_sync():
        for x, y in early:
            both_ways(x, y)
    both_ways(*late)
    optimizer.step()
