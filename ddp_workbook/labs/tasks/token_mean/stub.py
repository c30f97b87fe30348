def token_mean_backward(ddp, micro_batches, loss_sum_of):
    """Give every parameter the gradient of the mean loss over all tokens of all ranks and micro-batches.

    ddp: a model inside torch's DistributedDataParallel. Its gradients are None when this is called.
    micro_batches: this rank's list of (inputs, targets). All ranks have equally many of them, at least one.
    targets: whole numbers, one for each token; -100 marks padding, which does not count. Ranks and micro-batches have
        different numbers of tokens that count. Some have none; then the rank must take part all the same.
    loss_sum_of(outputs, targets): the sum of the losses of the tokens that count, a scalar tensor; 0 without any.

    Right means: every token that counts weighs 1 / (number of them on all ranks), on every rank. If there are none at
    all, the gradients are 0. Gradients are sent once; beside them one collective is allowed.
    """
    raise NotImplementedError
