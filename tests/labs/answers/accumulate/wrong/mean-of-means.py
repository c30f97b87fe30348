from contextlib import nullcontext


def step(ddp, micro_batches, loss_of, optimizer):
    optimizer.zero_grad()
    for number, (inputs, targets) in enumerate(micro_batches, start=1):
        with nullcontext() if number == len(micro_batches) else ddp.no_sync():
            loss = loss_of(ddp(inputs), targets)
            (loss / len(micro_batches)).backward()
    optimizer.step()
