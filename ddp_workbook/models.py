"""The networks that recipes name."""

from __future__ import annotations

from collections.abc import Callable

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


def build_resnet50(classes: int, image_size: int) -> nn.Module:
    """torchvision's ResNet-50 for RGB images (N, 3, image_size, image_size) -> logits (N, classes).

    Small images get a 3x3 stem of the same stride, so every later layer and the cost of a step stay as they were.
    The last BatchNorm of each block starts at zero, so that a block starts as the identity (Goyal et al. 2017).
    """
    model = resnet50(num_classes=classes, zero_init_residual=True)
    if image_size <= SMALL_IMAGE:
        model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    compute_by_matmul(model)
    return model


MODELS: dict[str, Callable[[int, int], nn.Module]] = {"resnet50": build_resnet50}


def build_model(config: TrainConfig, classes: int) -> nn.Module:
    """The recipe's network with fresh weights, drawn from torch's global random state."""
    return MODELS[config.model](classes, config.image_size)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
