def step(ddp, micro_batches, loss_of, optimizer):
    for inputs, targets in micro_batches:
        optimizer.zero_grad()
        loss_of(ddp(inputs), targets).backward()
        optimizer.step()
