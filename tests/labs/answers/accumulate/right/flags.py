def step(ddp, micro_batches, loss_of, optimizer):
    samples = 0
    for i, (x, y) in enumerate(micro_batches):
        ddp.require_backward_grad_sync = i == len(micro_batches) - 1
        samples += len(y)
        (loss_of(ddp(x), y) * len(y)).backward()
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad /= samples
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
