"""The vision transformer on a mesh of ranks, data x tensor: each rank has a part of the batch and of every layer.

Tensor parallelism as in Megatron-LM (Shoeybi et al. 2019, arXiv:1909.08053), with torch's own tools. Both halves of a
block, attention and MLP, are two linear layers with something in between that works on each head, or each value, alone.
So a rank can have some outputs of the first layer and the inputs of the second that belong to them. What the ranks
compute then only has to be added up: one all-reduce in the forward pass and one in the backward pass of each half.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from ddp_workbook.training.models import Residual, SelfAttention


def split_layers(model: nn.Module, mesh: DeviceMesh) -> None:
    """From now on each rank of a mesh with one dimension has its part of the transformer's blocks.

    All ranks must begin with the same weights, and their number must divide the heads. Embedding, normalization and the
    last layer stay whole.
    """
    for half in model.children():
        if not isinstance(half, Residual):
            continue
        first, second = "1", "3"  # the MLP's layers
        if isinstance(half[1], SelfAttention):
            first, second = "1.query_key_value", "1.project"
            rows = half[1].query_key_value.weight
            rows.data = _swap(rows.data, 3, mesh.size())  # a rank needs query, key and value of its heads
            half[1].heads //= mesh.size()
        plan = {first: ColwiseParallel(), second: RowwiseParallel()}
        parallelize_module(half, mesh, plan, src_data_rank=None)  # None: the weights are there, nothing is sent


@torch.no_grad()
def gather_weights(model: nn.Module, mesh: DeviceMesh) -> dict[str, Tensor]:
    """The parameters that split_layers() split, whole again, and the others; on every rank. All ranks must call it."""
    whole = {name: _gather(parameter, mesh) for name, parameter in model.named_parameters()}
    fused = [name for name in whole if name.endswith("query_key_value.weight")]
    return whole | {name: _swap(whole[name], mesh.size(), 3) for name in fused}


@torch.no_grad()
def average_gradients(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Replace all gradients by their means over the group, in one all-reduce.

    The group is the mesh's data dimension: its ranks have other images, and the same part of every layer. Over the
    tensor dimension nothing is averaged. Its ranks have the same images, and each all-reduce gives them the same sums:
    so they compute the same gradients, bit for bit, of the parameters that all of them have.
    """
    gradients = [p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad for p in model.parameters()]
    joined = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(joined, group=group)
    joined /= group.size()
    for gradient, mean in zip(gradients, joined.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _gather(parameter: nn.Parameter, mesh: DeviceMesh) -> Tensor:
    """As full_tensor(), which in torch 2.9 calls a collective that the labs' ledger cannot hand on to Gloo."""
    if not isinstance(parameter, DTensor):
        return parameter.detach()
    [placement], own = parameter.placements, parameter.to_local().contiguous()
    if placement.is_replicate():
        return own
    parts = [torch.empty_like(own) for _ in range(mesh.size())]
    dist.all_gather(parts, own, group=mesh.get_group())
    return torch.cat(parts, dim=placement.dim)


def _swap(weight: Tensor, outer: int, inner: int) -> Tensor:
    """Rows in the order (outer, inner, others) -> (inner, outer, others): (rows, inputs) -> (rows, inputs)."""
    return weight.unflatten(0, (outer, inner, -1)).transpose(0, 1).flatten(0, 2)
