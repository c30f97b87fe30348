from contextlib import nullcontext


def step(ddp, micro_batches, loss_of, optimizer):
    samples = sum(len(targets) for _, targets in micro_batches)
    optimizer.zero_grad()
    for number, (inputs, targets) in enumerate(micro_batches, start=1):
        last = number == len(micro_batches)
        with nullcontext() if last else ddp.no_sync():  # forward and backward
            loss = loss_of(ddp(inputs), targets)
            (loss * len(targets) / samples).backward()
    optimizer.step()
