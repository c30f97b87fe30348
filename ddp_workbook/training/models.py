"""The networks: one builder for each row of specs.MODELS."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import resnet50

from ddp_workbook.config import TrainConfig
from ddp_workbook.specs import (
    CNN_CHANNELS,
    CNN_WIDTH,
    LSTM_LAYERS,
    LSTM_WIDTH,
    MLP_WIDTHS,
    SMALL_IMAGE,
    VIT_BLOCKS,
    VIT_GRID,
    VIT_HEADS,
    VIT_WIDTH,
)
from ddp_workbook.training.cpu_layers import Dropout, compute_by_matmul


def build_resnet50(config: TrainConfig, classes: int) -> nn.Module:
    """torchvision's ResNet-50: images (N, 3, size, size) -> logits (N, classes).

    Small images change two things; the cost of a step stays the same. The stem has 3x3 filters of the same stride:
    those of 7x7 for ImageNet would blur most of the image. Shortcuts that halve the image average 2x2 pixels, where
    torchvision's drop three of four (ResNet-D, He et al. 2019): images this small have none to spare (bench/README.md).

    The last BatchNorm of each block starts at zero, so that a block starts as the identity (Goyal et al. 2017). All
    filters start with a length of about 1. BatchNorm cancels their length, but a step turns a filter by the learning
    rate over its squared length (van Laarhoven 2017). torchvision's initial weights make that differ 16-fold between
    layers, and ten epochs are too short for weight decay to even it out (bench/README.md).
    """
    model = resnet50(num_classes=classes, zero_init_residual=True)
    if config.image_size <= SMALL_IMAGE:
        model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=2, padding=1, bias=False)
        for stage in (model.layer2, model.layer3, model.layer4):
            average_in_shortcut(stage[0])
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear")
    compute_by_matmul(model)
    return model


def average_in_shortcut(block: nn.Module) -> None:
    """Let a ResNet block's shortcut average the pixels that its convolution would skip, in place."""
    convolution, norm = block.downsample
    convolution.stride = (1, 1)
    average = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)  # as many pixels as with stride 2
    block.downsample = nn.Sequential(OrderedDict({"average": average, "0": convolution, "1": norm}))


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


class PatchEmbedding(nn.Module):
    """Cuts images into square patches, and makes each one a token that knows its place.

    (N, channels, size, size) -> (N, tokens, width), at most VIT_GRID x VIT_GRID tokens. Where the last patches would
    stand over the border, the image is padded with zeros.
    """

    def __init__(self, channels: int, size: int, width: int) -> None:
        super().__init__()
        patch = math.ceil(size / VIT_GRID)
        padding = math.ceil(-size % patch / 2)
        self.project = nn.Conv2d(channels, width, kernel_size=patch, stride=patch, padding=padding)
        self.position = nn.Parameter(0.02 * torch.randn(math.ceil(size / patch) ** 2, width))

    def forward(self, images: Tensor) -> Tensor:
        return self.project(images).flatten(2).transpose(1, 2) + self.position


class SelfAttention(nn.Module):
    """Each token gathers from all tokens of its image (Vaswani et al. 2017): (N, tokens, width) -> (N, tokens, width).

    No bias: that of the keys would cancel in the softmax, and Adam would make steps of its rounding errors. Written
    out, since torch's scaled_dot_product_attention is slow on a CPU in bf16 (bench/README.md).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.query_key_value(x).unflatten(2, (3, self.heads, -1))  # (N, tokens, 3, heads, width / heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (N, heads, tokens, width / heads)
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])
        gathered = scores.softmax(3) @ value
        return self.project(gathered.transpose(1, 2).flatten(2))


class Residual(nn.Sequential):
    """The layers in a row, and a shortcut around them."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class MeanToken(nn.Module):
    """(N, tokens, width) -> (N, width)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def build_vit(config: TrainConfig, classes: int) -> nn.Module:
    """A small vision transformer (Dosovitskiy et al. 2021): images (N, channels, size, size) -> logits (N, classes).

    LayerNorm normalizes each token by itself, so nothing depends on the other images of the batch. The mean of the
    tokens takes the place of a class token (Beyer et al. 2022).
    """
    width, blocks = VIT_WIDTH, []
    for _ in range(VIT_BLOCKS):
        blocks += [
            Residual(nn.LayerNorm(width), SelfAttention(width, VIT_HEADS)),
            Residual(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)),
        ]
    embedding = PatchEmbedding(config.channels, config.image_size, width)
    return nn.Sequential(embedding, *blocks, nn.LayerNorm(width), MeanToken(), nn.Linear(width, classes))


class RowLSTM(nn.LSTM):
    """An LSTM that reads an image row by row, from top to bottom.

    (N, channels, size, size) -> what it holds after the last row, (N, width).
    """

    def forward(self, images: Tensor) -> Tensor:
        rows = images.transpose(1, 2).flatten(2)  # (N, size, channels * size): a time step for each row
        outputs, _ = super().forward(rows)
        return outputs[:, -1]


def build_lstm(config: TrainConfig, classes: int) -> nn.Module:
    """An LSTM that reads rows, and a linear layer: images (N, channels, size, size) -> logits (N, classes)."""
    row = config.channels * config.image_size
    return nn.Sequential(RowLSTM(row, LSTM_WIDTH, LSTM_LAYERS, batch_first=True), nn.Linear(LSTM_WIDTH, classes))


BUILDERS: dict[str, Callable[[TrainConfig, int], nn.Module]] = {
    "resnet50": build_resnet50,
    "mlp": build_mlp,
    "cnn": build_cnn,
    "vit": build_vit,
    "lstm": build_lstm,
}


def build_model(config: TrainConfig, classes: int) -> nn.Module:
    """The recipe's network with new weights, drawn from torch's global random state."""
    return BUILDERS[config.model](config, classes)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
