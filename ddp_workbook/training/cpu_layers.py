"""Layers that compute the same as torch's own, faster on a CPU: measured in bench/README.md."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class MatmulConv2d(nn.Conv2d):
    """A convolution without bias, computed as a matrix product where it is one. Same weights, same result.

    A 1x1 convolution multiplies each pixel's channels by a matrix. In an image of at most 2x2 pixels a 3x3 filter sees
    all pixels from each place, so the whole image is multiplied by a matrix made of the weights that it meets. On a CPU
    the matrix product is much faster (bench/README.md), and in channels-last order no pixel has to move for it.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        weight = self.weight.permute(0, 2, 3, 1)  # as stored in memory: the gradient then gets the same strides
        if self.kernel_size == (1, 1):
            pixels = x[:, :, :: self.stride[0], :: self.stride[1]].permute(0, 2, 3, 1)
            product = functional.linear(pixels.reshape(-1, self.in_channels), weight.flatten(1))
            return product.view(*pixels.shape[:3], self.out_channels).permute(0, 3, 1, 2)
        if max(x.shape[2:]) <= 2:
            return WholeImage.apply(x.permute(0, 2, 3, 1), weight, self.stride).permute(0, 3, 1, 2)
        return super().forward(x)


class WholeImage(torch.autograd.Function):
    """3x3 filters with padding 1 on images of at most 2x2 pixels, as one matrix product.

    Images (n, height, width, channels), weights (filters, 3, 3, channels) -> (n, rows, columns, filters). Autograd
    alone would do it, but keep the matrix, up to 16/9 of the weights, for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int]) -> Tensor:
        size = x.shape[1:3]
        matrix = torch.cat([met.flatten(1) for met in _met_weights(weight, size, stride)])
        product = functional.linear(x.flatten(1), matrix)  # in the precision of autocast
        ctx.save_for_backward(x.to(product.dtype), weight)
        ctx.stride = stride
        rows, columns = (-(-pixels // step) for pixels, step in zip(size, stride, strict=True))
        return product.view(len(x), rows, columns, len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        size, grad = x.shape[1:3], grad.flatten(1)
        matrix = torch.cat([met.flatten(1) for met in _met_weights(weight, size, ctx.stride)]).to(grad.dtype)
        of_weight = torch.zeros_like(weight)
        places = zip(_met_weights(of_weight, size, ctx.stride), grad.split(len(weight), dim=1), strict=True)
        for met, of_place in places:
            met += (of_place.t() @ x.flatten(1)).view(met.shape)
        return (grad @ matrix).view(x.shape), of_weight, None


def _met_weights(weight: Tensor, size: torch.Size, stride: tuple[int, int]) -> list[Tensor]:
    """For each place of a filter, row by row: the weights that meet a pixel, a view (filters, height, width, in)."""
    height, width = size
    return [
        weight[:, 1 - top : 1 - top + height, 1 - left : 1 - left + width]
        for top in range(0, height, stride[0])
        for left in range(0, width, stride[1])
    ]


def compute_by_matmul(model: nn.Module) -> None:
    """Turn the convolutions that can be matrix products into MatmulConv2d, in place; weights and names stay."""
    for module in model.modules():
        plain = type(module) is nn.Conv2d and module.bias is None and module.groups == 1
        if plain and module.padding_mode == "zeros":
            pointwise = module.kernel_size == (1, 1) and module.padding == (0, 0)
            padded = module.kernel_size == (3, 3) and module.padding == (1, 1) and module.dilation == (1, 1)
            if pointwise or padded:
                module.__class__ = MatmulConv2d


class Dropout(nn.Dropout):
    """torch's dropout with a faster mask on CPUs: uniform numbers take a third of the time of Bernoulli draws."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not self.training or self.p == 1:
            return super().forward(x)
        kept = torch.rand(x.shape).ge_(self.p)  # drawn in float32: bf16 would round the probability
        return x * kept.mul_(1 / (1 - self.p)).to(x.dtype)
