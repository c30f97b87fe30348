"""As in karpathy/build-nanogpt#30."""


def step(ddp, micro_batches, loss_of, optimizer):
    samples = sum(len(targets) for _, targets in micro_batches)
    optimizer.zero_grad()
    for number, (inputs, targets) in enumerate(micro_batches, start=1):
        loss = loss_of(ddp(inputs), targets) * len(targets) / samples
        ddp.require_backward_grad_sync = number == len(micro_batches)
        loss.backward()
    optimizer.step()
