"""Layers that compute the same as torch's own, faster on a CPU: measured in bench/README.md."""

from __future__ import annotations

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
        height, width = x.shape[2:]
        if max(height, width) <= 2:
            tops, lefts = range(0, height, self.stride[0]), range(0, width, self.stride[1])
            met = [weight[:, 1 - i : 1 - i + height, 1 - j : 1 - j + width].flatten(1) for i in tops for j in lefts]
            product = functional.linear(x.permute(0, 2, 3, 1).flatten(1), torch.cat(met))
            return product.view(len(x), len(tops), len(lefts), self.out_channels).permute(0, 3, 1, 2)
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
