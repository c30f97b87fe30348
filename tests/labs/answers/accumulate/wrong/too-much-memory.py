def step(ddp, micro_batches, loss_of, optimizer):
    samples = sum(len(targets) for _, targets in micro_batches)
    optimizer.zero_grad()
    sum(loss_of(ddp(x), y) * len(y) / samples for x, y in micro_batches).backward()
    optimizer.step()
