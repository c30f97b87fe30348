"""The networks: one builder for each row of specs.MODELS."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from torch import nn
from torchvision.models import resnet50

from ddp_workbook.config import TrainConfig
from ddp_workbook.specs import CNN_CHANNELS, CNN_WIDTH, MLP_WIDTHS
from ddp_workbook.training.cpu_layers import Dropout, compute_by_matmul

SMALL_IMAGE = 64  # pixels; up to this size the ImageNet stem of 7x7 kernels would blur most of the image


def build_resnet50(config: TrainConfig, classes: int) -> nn.Module:
    """torchvision's ResNet-50: images (N, 3, size, size) -> logits (N, classes).

    Small images get a 3x3 stem of the same stride; every later layer and the cost of a step stay the same. The last
    BatchNorm of each block starts at zero, so that a block starts as the identity (Goyal et al. 2017).

    All filters start with a length of about 1. BatchNorm cancels their length, but a step turns a filter by the
    learning rate over its squared length (van Laarhoven 2017). torchvision's initial weights make that differ 16-fold
    between layers, and ten epochs are too short for weight decay to even it out (bench/README.md).
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
    widths = [config.channels * config.image_size**2, *MLP_WIDTHS]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(), Dropout(config.dropout)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def build_cnn(config: TrainConfig, classes: int) -> nn.Module:
    """Two convolutions, each halved by pooling, and two linear layers: (N, channels, size, size) -> (N, classes).

    Max-pooling and ReLU may change places without changing the result or the gradients. With pooling first, ReLU works
    on a quarter of the values, forward and backward.
    """
    pooled = config.image_size // 4
    first, second = CNN_CHANNELS
    return nn.Sequential(
        nn.Conv2d(config.channels, first, kernel_size=3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(first, second, kernel_size=3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * pooled**2, CNN_WIDTH),
        nn.ReLU(),
        Dropout(config.dropout),
        nn.Linear(CNN_WIDTH, classes),
    )


BUILDERS: dict[str, Callable[[TrainConfig, int], nn.Module]] = {
    "resnet50": build_resnet50,
    "mlp": build_mlp,
    "cnn": build_cnn,
}


def build_model(config: TrainConfig, classes: int) -> nn.Module:
    """The recipe's network with new weights, drawn from torch's global random state."""
    return BUILDERS[config.model](config, classes)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
