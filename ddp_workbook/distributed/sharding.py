"""Sharded training: each rank keeps its share of the optimizer's state, or of parameters and gradients too.

`--shard optimizer` is stage 1 of ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054): DDP averages all gradients on all
ranks, each rank updates some parameters, and sends them to the others. `--shard full` is stage 3, by torch's
fully_shard (FSDP2): the parameters of a block are gathered just before it computes.

Checkpoints hold whole tensors, so that any number of processes can read them, sharded or not.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ddp_workbook.config import TrainConfig
from ddp_workbook.distributed.process_group import World
from ddp_workbook.errors import InputError


def check_sharding(config: TrainConfig, world: World, device: torch.device, backend: str, precision: str) -> None:
    """Raise InputError where the run cannot be sharded as it asks for."""
    asked = f"--shard {config.shard}"
    if config.shard == "none":
        return
    if not world.launched:
        raise InputError(f"{asked} needs several processes; start them with torchrun, or use --shard none")
    if config.shard == "optimizer":
        return
    if config.comm_hook != "allreduce":
        raise InputError(
            f"{asked} has no place for --comm-hook {config.comm_hook}, which is a hook of DDP; "
            f"use --comm-hook allreduce, or --shard optimizer"
        )
    if config.balance == "auto":
        raise InputError(
            f"{asked} leaves no rank a whole model to time for --balance auto; give shares, such as --balance 1:2, or "
            f"use --shard optimizer"
        )
    if precision == "fp16":
        raise InputError(f"{asked} cannot scale gradients for fp16; use --precision bf16 or fp32, or --shard optimizer")
    if (device.type, backend) not in (("cpu", "gloo"), ("cuda", "nccl")):
        raise InputError(f"{asked} needs --device cpu, or GPUs with --backend nccl; not {device.type} with {backend}")


def shard_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """From now on each rank's step() updates its own parameters only, and then all ranks have all of them.

    A parameter without gradient is skipped by torch's optimizers, and gets no state: so the gradients of the others'
    parameters are put aside for the time of the step.
    """
    rank, others = dist.get_rank(), []

    def put_aside(*_: object) -> None:
        for parameter, owner in zip(_parameters(optimizer), owners(optimizer), strict=True):
            if owner != rank:
                others.append((parameter, parameter.grad))
                parameter.grad = None

    def share(*_: object) -> None:
        for parameter, gradient in others:
            parameter.grad = gradient
        others.clear()
        pairs = zip(_parameters(optimizer), owners(optimizer), strict=True)
        for work in [dist.broadcast(parameter.data, owner, async_op=True) for parameter, owner in pairs]:
            work.wait()

    optimizer.register_step_pre_hook(put_aside)
    optimizer.register_step_post_hook(share)


def owners(optimizer: torch.optim.Optimizer) -> list[int]:
    """The rank that updates each parameter. From the largest on, each goes to the rank that has least so far.

    So no two ranks differ by more than the largest parameter.
    """
    sizes = [parameter.numel() for parameter in _parameters(optimizer)]
    loads, owner = [0] * dist.get_world_size(), [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        owner[index] = loads.index(min(loads))
        loads[owner[index]] += sizes[index]
    return owner


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """In the order of the numbers that state_dict() gives them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def shard_model(model: nn.Module, device: torch.device) -> nn.Module:
    """The same model, of whose parameters each rank keeps a part of the rows; each block is a unit of its own.

    fully_shard takes contiguous parameters only, so convolutions lose channels-last order in their weights.
    """
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)  # changed in place: never
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    model.to(memory_format=torch.contiguous_format)
    for block in blocks(model):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    return fully_shard(model, mesh=mesh, reshard_after_forward=True)


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The model's parts that have parameters, in order: children, and those of plain sequences among them."""
    for child in model.children():
        if type(child) is nn.Sequential:
            yield from blocks(child)
        elif any(True for _ in child.parameters()):
            yield child


def whole_weights(model: nn.Module) -> dict[str, Tensor | None]:
    """The model's state_dict() with whole tensors, on rank 0; all ranks must call it. On others None for each shard."""
    return _whole(model.state_dict())


def load_whole_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load whole tensors into the model; of a sharded one each rank takes its part. Errors are load_state_dict()'s."""
    own = model.state_dict()
    model.load_state_dict({name: _part(value, own.get(name)) for name, value in weights.items()})


def whole_optimizer(optimizer: torch.optim.Optimizer, config: TrainConfig) -> dict:
    """The optimizer's state_dict() as it is without sharding, on rank 0; all ranks must call it."""
    content = _whole(optimizer.state_dict())
    if config.shard == "optimizer":
        of_ranks: list | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(content["state"], of_ranks)
        content["state"] = dict(sorted(item for state in of_ranks or () for item in state.items()))
    return content


def load_whole_optimizer(optimizer: torch.optim.Optimizer, whole: dict, config: TrainConfig) -> None:
    """Load what whole_optimizer() returned; each rank keeps its part. Errors are load_state_dict()'s.

    Which kernels the optimizer computes with is not loaded: torch has no fused SGD for sharded tensors.
    """
    parameters, states = _parameters(optimizer), whole["state"]
    if config.shard == "optimizer":
        mine = [number for number, owner in enumerate(owners(optimizer)) if owner == dist.get_rank()]
        states = {number: states[number] for number in mine if number in states}
    states = {
        number: {name: _part(value, parameters[number]) for name, value in state.items()}
        for number, state in states.items()
    }
    pairs = zip(whole["param_groups"], optimizer.param_groups, strict=True)
    groups = [saved | {"fused": own["fused"]} for saved, own in pairs]
    optimizer.load_state_dict({"state": states, "param_groups": groups})


def _whole(content: object) -> object:
    """Nested dicts and lists with each sharded tensor whole on rank 0, None on the others."""
    if isinstance(content, DTensor):
        tensor = content.full_tensor()
        return tensor if dist.get_rank() == 0 else None
    if isinstance(content, dict):
        return {name: _whole(value) for name, value in content.items()}
    return content


def _part(value: object, like: object) -> object:
    """This rank's part of a whole tensor that is sharded like another one; anything else as it is."""
    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return value


def local_bytes(tensors: Iterable[Tensor]) -> int:
    """Memory that tensors take on this rank: bytes of their storages, each counted once."""
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum({s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in local)}.values())
