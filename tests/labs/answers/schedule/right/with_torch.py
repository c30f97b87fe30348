"""torch's OneCycleLR has this very curve; steps are counted batch by batch, as a training loop meets them."""

import torch
from torch.optim.lr_scheduler import OneCycleLR


def peak_lr(base_lr, base_batch_size, batch_size, world, accumulate):
    per_image = base_lr / base_batch_size
    return per_image * batch_size * world * accumulate


def optimizer_steps(images, batch_size, world, accumulate, epochs):
    batches = images // world // batch_size
    return sum(batches // accumulate for _ in range(epochs))


def lr_at(step, steps, warmup_steps, peak):
    if warmup_steps == 1:  # torch divides by zero there: one step more, and leave out the first
        step, steps, warmup_steps = step + 1, steps + 1, 2
    step = min(step, steps - 1)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = OneCycleLR(optimizer, peak, total_steps=steps, pct_start=warmup_steps / steps, cycle_momentum=False)
    schedule.last_epoch = step - 1
    optimizer.step()
    schedule.step()
    return optimizer.param_groups[0]["lr"]
