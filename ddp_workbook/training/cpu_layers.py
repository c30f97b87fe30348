"""Layers that compute the same as torch's own, faster on a CPU: measured in bench/README.md."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class MatmulConv2d(nn.Conv2d):
    """A convolution without bias, computed as a matrix product where it is one. Same weights, same result.

    A 1x1 convolution multiplies each pixel's channels by a matrix; a 3x3 convolution with padding 1 on a single pixel
    uses only its centre weights. On a CPU and for images as small as these, the matrix product is much faster
    (bench/README.md), and in channels-last order no pixel has to move for it.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        weight = self.weight.permute(0, 2, 3, 1)  # as stored in memory: the gradient then gets the same strides
        if self.kernel_size == (1, 1):
            pixels = x[:, :, :: self.stride[0], :: self.stride[1]].permute(0, 2, 3, 1)
            product = functional.linear(pixels.reshape(-1, self.in_channels), weight.flatten(1))
            return product.view(*pixels.shape[:3], self.out_channels).permute(0, 3, 1, 2)
        if x.shape[2:] == (1, 1):
            return functional.linear(x.flatten(1), weight[:, 1, 1])[:, :, None, None]
        return super().forward(x)


def compute_by_matmul(model: nn.Module) -> None:
    """Turn the convolutions that can be matrix products into MatmulConv2d, in place; weights and names stay."""
    for module in model.modules():
        if type(module) is nn.Conv2d and module.bias is None and module.groups == 1:
            pointwise = module.kernel_size == (1, 1) and module.padding == (0, 0)
            padded = module.kernel_size == (3, 3) and module.padding == (1, 1) and module.dilation == (1, 1)
            if pointwise or padded:
                module.__class__ = MatmulConv2d


class Dropout(nn.Dropout):
    """torch's dropout with a faster mask on CPUs: uniform numbers take a third of the time of Bernoulli draws."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not self.training:
            return super().forward(x)
        kept = torch.rand(x.shape).ge_(self.p)  # drawn in float32: bf16 would round the probability
        return x * kept.mul_(1 / (1 - self.p)).to(x.dtype)
