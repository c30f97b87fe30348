class Buckets:
    """Average gradients in few collectives that run beside the backward pass, as DistributedDataParallel does.

    Each training step is: optimizer.zero_grad(), loss.backward(), buckets.finish(), optimizer.step(). After finish()
    every .grad is the mean over the ranks. Take three steps: all gradients in one flat tensor, in finish(); then in
    buckets; then call a bucket's collective as soon as its last gradient is there, and wait for it in finish() only.
    parameter.register_post_accumulate_grad_hook(function) calls function(parameter) when the gradient is there.
    """

    def __init__(self, module, cap_bytes):
        """Called once on every rank; the parameters of `module` are the same on all of them.

        Parameters go into buckets in the reverse order of module.parameters(), without those that are frozen. A new
        bucket begins where the next gradient would make the present one larger than cap_bytes; so a gradient that is
        larger is alone in its bucket. (DDP's own buckets end with the gradient that fills them.) There is one
        all_reduce per bucket, and each gradient is in one bucket.
        """
        raise NotImplementedError

    def finish(self):
        """Called after each backward(): every parameter that is not frozen has a gradient, and gets the mean."""
        raise NotImplementedError
