def peak_lr(base_lr, base_batch_size, batch_size, world, accumulate):
    """The highest learning rate of the training.

    base_lr is right for a global batch of base_batch_size images, and the rate grows linearly with the global batch:
    the images behind one optimizer step. Each of `world` ranks reads batches of batch_size images and adds up the
    gradients of `accumulate` batches before each step.
    """
    raise NotImplementedError


def optimizer_steps(images, batch_size, world, accumulate, epochs):
    """How many optimizer steps the whole training has, as an int.

    In each epoch every rank gets the same number of images. What does not fill a whole step is dropped, in every
    epoch; it may be that no step is left.
    """
    raise NotImplementedError


def lr_at(step, steps, warmup_steps, peak):
    """The learning rate of optimizer step `step`, which is counted from 0; 1 <= warmup_steps < steps.

    Half a cosine rises from peak / 25 at step 0 to peak at step warmup_steps - 1; another one falls from there to
    peak / 250_000 at step steps - 1. (With warmup_steps = 1 step 0 has the peak.) A scheduler also asks for the rate
    of step `steps`, after the last one: it is that of the last step.

    Half a cosine from a to b: a + (b - a) * (1 - cos(pi * share)) / 2, where `share` goes from 0 to 1.
    """
    raise NotImplementedError
