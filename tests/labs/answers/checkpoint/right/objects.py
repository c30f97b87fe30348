"""Rank 0 writes and reads; whole objects go from rank to rank."""

import io
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def save(path, model, optimizer, scheduler, epoch, position):
    generators = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(torch.get_rng_state().tolist(), generators)
    if dist.get_rank() == 0:
        weights = {name.removeprefix("module."): tensor for name, tensor in model.state_dict().items()}
        content = io.BytesIO()
        torch.save([weights, optimizer.state_dict(), scheduler.state_dict(), generators, epoch, position], content)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(content.getvalue())
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(path)
    dist.barrier()


def load(path, model, optimizer, scheduler):
    alone = not dist.is_initialized()
    content = [torch.load(path, weights_only=True) if alone or dist.get_rank() == 0 else None]
    if not alone:
        dist.broadcast_object_list(content)
    weights, optimizer_state, scheduler_state, generators, epoch, position = content[0]
    net = model.module if isinstance(model, DistributedDataParallel) else model
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            tensor.copy_(weights[name])
    optimizer.load_state_dict(optimizer_state)
    scheduler.load_state_dict(scheduler_state)
    state = torch.tensor(generators[0 if alone else dist.get_rank()], dtype=torch.uint8)
    torch.random.set_rng_state(state)
    return [epoch, position]
