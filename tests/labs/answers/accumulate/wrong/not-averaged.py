def step(ddp, micro_batches, loss_of, optimizer):
    samples = sum(len(targets) for _, targets in micro_batches)
    optimizer.zero_grad()
    with ddp.no_sync():
        for inputs, targets in micro_batches:
            loss = loss_of(ddp(inputs), targets)
            (loss * len(targets) / samples).backward()
    optimizer.step()
