from contextlib import nullcontext


def step(ddp, micro_batches, loss_of, optimizer):
    samples = sum(len(targets) for _, targets in micro_batches)
    for number, (inputs, targets) in enumerate(micro_batches, start=1):
        with nullcontext() if number == len(micro_batches) else ddp.no_sync():
            loss = loss_of(ddp(inputs), targets)
            (loss * len(targets) / samples).backward()
    optimizer.step()
