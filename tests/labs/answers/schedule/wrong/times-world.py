import math


def peak_lr(base_lr, base_batch_size, batch_size, world, accumulate):
    return base_lr * world


def optimizer_steps(images, batch_size, world, accumulate, epochs):
    return epochs * (images // (batch_size * world * accumulate))


def half_cosine(start, end, share):
    return start + (end - start) * (1 - math.cos(math.pi * share)) / 2


def lr_at(step, steps, warmup_steps, peak):
    top, last = warmup_steps - 1, steps - 1  # the steps with the highest and the lowest rate
    if step < top:
        return half_cosine(peak / 25, peak, step / top)
    return half_cosine(peak, peak / 250_000, min(1, (step - top) / (last - top)))
