"""The networks that recipes name."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet50

from ddp_workbook.config import TrainConfig

SMALL_IMAGE = 64  # pixels; up to here the ImageNet stem of 7x7 kernels would blur most of the picture away


class MatmulConv2d(nn.Conv2d):
    """A convolution without bias that is computed as a matrix product where it is one. Same weights, same result.

    A 1x1 convolution multiplies each pixel's channels by a matrix; a 3x3 convolution with padding 1 that sees a single
    pixel uses its centre weights alone. On a CPU and for images as small as these, the matrix product is much the
    faster way (bench/README.md), and in channels-last order no pixel has to move for it.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        weight = self.weight.permute(0, 2, 3, 1)  # as it lies in memory: the gradient then gets the same strides
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
    """torch's dropout, drawn faster on a CPU: uniform numbers take a third of the time of its Bernoulli draws."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not self.training:
            return super().forward(x)
        kept = torch.rand(x.shape).ge_(self.p)  # drawn in float32: bf16 would round the probability
        return x * kept.mul_(1 / (1 - self.p)).to(x.dtype)


def build_resnet50(config: TrainConfig, classes: int) -> nn.Module:
    """torchvision's ResNet-50: images (N, 3, size, size) -> logits (N, classes).

    Small images get a 3x3 stem of the same stride, so every later layer and the cost of a step stay as they were.
    The last BatchNorm of each block starts at zero, so that a block starts as the identity (Goyal et al. 2017).

    The filters all start with a length of about 1. BatchNorm undoes their length, but a step turns a filter by the
    learning rate over its squared length (van Laarhoven 2017). torchvision's start makes that differ 16-fold between
    layers, and ten epochs are too short for weight decay to level it (bench/README.md).
    """
    model = resnet50(num_classes=classes, zero_init_residual=True)
    if config.image_size <= SMALL_IMAGE:
        model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=2, padding=1, bias=False)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear")
    compute_by_matmul(model)
    return model


def build_mlp(config: TrainConfig, classes: int) -> nn.Module:
    """Four fully connected layers, dropout between them: images (N, channels, size, size) -> logits (N, classes)."""
    widths = [config.channels * config.image_size**2, 512, 256, 128]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(), Dropout(config.dropout)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def build_cnn(config: TrainConfig, classes: int) -> nn.Module:
    """Two convolutions, each halved by pooling, and two linear layers: (N, channels, size, size) -> (N, classes).

    The larger of two rectified values is the larger value, rectified: pooling may come before ReLU with the same result
    and gradients, and ReLU then has a quarter of the values to go through, forward and back.
    """
    pooled = config.image_size // 4
    return nn.Sequential(
        nn.Conv2d(config.channels, 32, kernel_size=3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(32, 64, kernel_size=3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * pooled**2, 128),
        nn.ReLU(),
        Dropout(config.dropout),
        nn.Linear(128, classes),
    )


MODELS: dict[str, Callable[[TrainConfig, int], nn.Module]] = {
    "resnet50": build_resnet50,
    "mlp": build_mlp,
    "cnn": build_cnn,
}


def build_model(config: TrainConfig, classes: int) -> nn.Module:
    """The recipe's network with fresh weights, drawn from torch's global random state."""
    return MODELS[config.model](config, classes)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
