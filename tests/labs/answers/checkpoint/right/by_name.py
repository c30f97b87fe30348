"""torch's own functions give names that do not depend on DDP, for the optimizer's state too."""

import shutil

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict


def save(path, model, optimizer, scheduler, epoch, position):
    states = torch.zeros(dist.get_world_size(), len(torch.get_rng_state()), dtype=torch.int32)
    states[dist.get_rank()] = torch.get_rng_state()
    dist.all_reduce(states)
    weights, momentum = get_state_dict(model, optimizer)
    if dist.get_rank() == 0:
        training = {"weights": weights, "momentum": momentum, "schedule": scheduler.state_dict()}
        torch.save({**training, "states": states.byte(), "place": [epoch, position]}, f"{path}.new")
        shutil.move(f"{path}.new", path)


def load(path, model, optimizer, scheduler):
    training = torch.load(path)
    set_state_dict(model, optimizer, model_state_dict=training["weights"], optim_state_dict=training["momentum"])
    scheduler.load_state_dict(training["schedule"])
    torch.set_rng_state(training["states"][dist.get_rank() if dist.is_initialized() else 0].clone())
    return tuple(training["place"])
