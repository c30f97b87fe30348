def evaluate(model, images, labels, rank, world):
    """The mean loss and the number of correct predictions on a test set, computed by all ranks together.

    model: an nn.Module, not wrapped, with the same weights and buffers on every rank. model(images) gives a row of
        scores for each image; the highest one is the prediction. It has dropout and BatchNorm, and may be in training
        or in evaluation mode; leave it as you found it, its buffers too.
    images, labels: the whole test set, n of each, on every rank. Share them: each image is evaluated by one rank, and
        the ranks' shares differ by one image at most. With few images some ranks have none; n may be 0.

    Return (loss, correct, total) on every rank: the mean cross entropy of all n images, added up in float64; how many
    predictions are correct; and n, counted from what the ranks did. Without images: (0.0, 0, 0). One collective.
    """
    raise NotImplementedError
