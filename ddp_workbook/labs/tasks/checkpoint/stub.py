def save(path, model, optimizer, scheduler, epoch, position):
    """Write the training into the one file `path`, a pathlib.Path; every rank calls this at the same time.

    model: wrapped in DistributedDataParallel. epoch, position: whole numbers, the current epoch and its steps so far.
    Each rank has a random generator of its own, torch's global one (torch.get_rng_state()), which draws dropout and
    augmentation; all of them must be in the file.

    An older file may be there. Whenever a process is killed, `path` must be a complete file, the old or the new one.
    torch.load(path, weights_only=True) must be able to read it. The training itself must not be changed.
    """
    raise NotImplementedError


def load(path, model, optimizer, scheduler):
    """Bring back what save() wrote, and return (epoch, position); every rank calls this with new objects.

    From here the training must go on bit for bit as if it had never been interrupted, on every rank: weights, momentum,
    learning rates, random numbers. The same file must also load in a single process without a process group, into a
    model without DistributedDataParallel (to test or to publish it); random numbers do not matter there.

    Give torch.set_rng_state() a whole tensor: with a row of a larger one torch 2.14 crashes; clone() the row.
    """
    raise NotImplementedError
