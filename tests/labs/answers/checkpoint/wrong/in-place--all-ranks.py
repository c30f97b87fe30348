import torch
import torch.distributed as dist


def plain(model):
    return getattr(model, "module", model)  # the names in the file do not depend on DDP


def save(path, model, optimizer, scheduler, epoch, position):
    mine = torch.get_rng_state()
    generators = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(generators, mine)
    training = {
        "model": plain(model).state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "generators": generators,
        "place": (epoch, position),
    }
    torch.save(training, path)


def load(path, model, optimizer, scheduler):
    training = torch.load(path, weights_only=True)
    plain(model).load_state_dict(training["model"])
    optimizer.load_state_dict(training["optimizer"])
    scheduler.load_state_dict(training["scheduler"])
    if dist.is_initialized():
        torch.set_rng_state(training["generators"][dist.get_rank()])
    return training["place"]
