from math import cos, pi


def peak_lr(base_lr, base_batch_size, batch_size, world, accumulate):
    return base_lr / (base_batch_size / (batch_size * world * accumulate))


def optimizer_steps(images, batch_size, world, accumulate, epochs):
    done = 0
    for _ in range(epochs):
        left = images
        while left >= batch_size * world * accumulate:
            left -= batch_size * world * accumulate
            done += 1
    return done


def lr_at(step, steps, warmup_steps, peak):
    low, end = peak / 25, peak / 250_000
    if step >= steps:
        return end
    if step <= warmup_steps - 2:
        return low + (peak - low) * 0.5 * (1 - cos(pi * step / (warmup_steps - 1)))
    progress = (step - warmup_steps + 1) / (steps - warmup_steps)
    return end + (peak - end) * 0.5 * (1 + cos(pi * progress))
