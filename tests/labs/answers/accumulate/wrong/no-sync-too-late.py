"""As in facebookresearch/ClassyVision#706 and huggingface/accelerate#1726."""

from contextlib import nullcontext


def step(ddp, micro_batches, loss_of, optimizer):
    samples = sum(len(targets) for _, targets in micro_batches)
    optimizer.zero_grad()
    for number, (inputs, targets) in enumerate(micro_batches, start=1):
        loss = loss_of(ddp(inputs), targets) * len(targets) / samples
        with nullcontext() if number == len(micro_batches) else ddp.no_sync():
            loss.backward()
    optimizer.step()
