class ShardedOptimizer:
    """An optimizer whose state is split over the ranks: stage 1 of ZeRO.

    Every parameter that is not frozen has one owner, a rank. Only the owner keeps the optimizer's state for it and
    computes its new value, which then goes to the other ranks. Each training step is: optimizer.zero_grad(),
    loss.backward(), the averaging of the gradients (not your task here), optimizer.step(). After it all ranks have
    the weights that one optimizer for all parameters would give, bit for bit.
    """

    def __init__(self, params, cls, **kw):
        """Called once on every rank, with the same parameters in the same order and with equal weights.

        params: what torch's optimizers accept: parameters, or groups, which are dicts with "params" and with options
            of their own. cls: such as torch.optim.SGD or AdamW. kw: its options for all groups, such as lr.

        A rank keeps at most 1/N of the bytes of all state, and the state of the largest parameter besides. There may be
        fewer parameters than ranks. self.param_groups is as in a plain optimizer, the same on every rank: the groups,
        with all of their parameters and options. Between two steps options may be changed there, as schedulers do:
        group["lr"], or group["weight_decay"].
        """
        raise NotImplementedError

    def step(self):
        """Called when the gradients are averaged. Each new value is sent once; nothing else is sent."""
        raise NotImplementedError

    def zero_grad(self):
        """Forget the gradients of all parameters."""
        raise NotImplementedError
