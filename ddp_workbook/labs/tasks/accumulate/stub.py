def step(ddp, micro_batches, loss_of, optimizer):
    """Make one step of the optimizer with a batch that is too large for one forward pass.

    ddp: a model inside torch's DistributedDataParallel.
    micro_batches: this rank's list of (inputs, targets). All ranks have equally many of them, at least one, and equally
        many samples in all; but the micro-batches differ in size. len(targets) is the number of samples.
    loss_of(outputs, targets): the mean loss of the samples of one micro-batch, a scalar tensor.
    optimizer: of the model's parameters. It makes one step. Gradients of the step before may still be there.

    Right means: the step follows the gradient of the mean loss of all samples of all ranks, each with the same weight.
    The activations of one micro-batch at most are in memory at a time, and gradients are sent once, not once for each
    micro-batch. ddp.no_sync() is a context in which DDP sends no gradients.
    """
    raise NotImplementedError
