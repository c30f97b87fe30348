"""The networks that recipes name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torchvision.models import resnet50

from ddp_workbook.config import TrainConfig

SMALL_IMAGE = 64  # pixels; up to here the ImageNet stem of 7x7 kernels would blur most of the picture away


def build_resnet50(classes: int, image_size: int) -> nn.Module:
    """torchvision's ResNet-50 for RGB images (N, 3, image_size, image_size) -> logits (N, classes).

    Small images get a 3x3 stem of the same stride, so every later layer and the cost of a step stay as they were.
    The last BatchNorm of each block starts at zero, so that a block starts as the identity (Goyal et al. 2017).
    """
    model = resnet50(num_classes=classes, zero_init_residual=True)
    if image_size <= SMALL_IMAGE:
        model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model


MODELS: dict[str, Callable[[int, int], nn.Module]] = {"resnet50": build_resnet50}


def build_model(config: TrainConfig, classes: int) -> nn.Module:
    """The recipe's network with fresh weights, drawn from torch's global random state."""
    return MODELS[config.model](classes, config.image_size)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
