"""The models and data sets that a run can name: one row each, with every fact that other modules need about it."""

from __future__ import annotations

from dataclasses import dataclass

MLP_WIDTHS = (512, 256, 128)
SMALL_IMAGE = 64  # pixels; for images of up to this size a ResNet-50 differs from torchvision's (training/models.py)
CNN_CHANNELS = (32, 64)
CNN_WIDTH = 128
VIT_GRID, VIT_WIDTH, VIT_HEADS, VIT_BLOCKS = 8, 128, 4, 4
LSTM_WIDTH, LSTM_LAYERS = 128, 2


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Facts about a model. Its builder, with the same name, stands in training/models.py."""

    label: str
    """Name in figures and tables."""
    title: str
    """Name in a sentence."""
    layers: str
    """Its layers in words, for the report."""
    colour: str
    """Colour in figures, as #RRGGBB: neither the baseline's blue nor the distributed run's orange."""
    colour_images: bool = False
    """It wants three channels, so that grey images are repeated; others take grey images as they are."""
    source: str | None = None
    """Key of its entry in report/references.yml."""
    dropout: bool = True
    """It has a dropout layer."""
    batch_norm: bool = False
    """It has BatchNorm layers, so each rank normalizes with its own images."""
    benchmark_steps: int = 50
    """Optimizer steps per benchmark round: enough for about half a second on a CPU."""
    sweep_steps: int = 10
    """Optimizer steps per round of the batch-size sweep."""
    chosen_on_test: bool = True
    """Settings of its recipes were chosen on test images; False: on training images that were held out."""
    in_every_sweep: bool = False
    """Every course's batch-size sweep times it; another network is timed in the courses of its own recipes only."""


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Facts about a data set. Its reader stands in training/datasets.py."""

    title: str
    """Name in a sentence."""
    source: str | None = None
    """Key of its entry in report/references.yml."""
    images: tuple[int, int] | None = None
    """Number of training and test images; None: they are the user's own."""
    folder: str | None = None
    """Where the files lie, below the data folder; None: nothing to download."""
    grey: bool = False
    """One channel instead of three."""
    mirror_keeps_class: bool = True
    """A mirrored image keeps its class: true for animals, false for digits."""


MODELS = {
    "resnet50": ModelSpec(
        label="ResNet-50", title="a ResNet-50", layers="torchvision's 50 layers, with a stem for small images",
        colour="#882255", colour_images=True, dropout=False, batch_norm=True, benchmark_steps=2, sweep_steps=1,
        in_every_sweep=True,
    ),
    "mlp": ModelSpec(
        label="MLP", title="a multilayer perceptron", colour="#999933",
        layers="hidden layers of {}, {} and {} units".format(*MLP_WIDTHS), in_every_sweep=True,
    ),
    "cnn": ModelSpec(
        label="CNN", title="a small convolutional network", colour="#117733",
        layers="two convolutions with {} and {} channels, each followed by pooling, ".format(*CNN_CHANNELS)
        + f"and a hidden layer of {CNN_WIDTH} units", in_every_sweep=True,
    ),
    "vit": ModelSpec(
        label="ViT", title="a small vision transformer", source="dosovitskiy2021", colour="#AA4499", dropout=False,
        chosen_on_test=False,
        layers=f"up to {VIT_GRID} × {VIT_GRID} patches, then {VIT_BLOCKS} blocks of width {VIT_WIDTH}, each with "
        f"self-attention in {VIT_HEADS} heads and two linear layers, and LayerNorm before both",
        benchmark_steps=5, sweep_steps=2,
    ),
    "lstm": ModelSpec(
        label="LSTM", title="an LSTM that reads images row by row", source="hochreiter1997", colour="#44AA99",
        dropout=False, chosen_on_test=False,
        layers=f"{LSTM_LAYERS} LSTM layers of {LSTM_WIDTH} units, and a linear layer on their last output",
    ),
}  # fmt: skip

DATASETS = {
    "digits": DatasetSpec(
        title="the handwritten digits of scikit-learn", source="alpaydin1998", images=(1437, 360), grey=True,
        mirror_keeps_class=False,
    ),
    "mnist": DatasetSpec(
        title="MNIST", source="lecun1998", images=(60_000, 10_000), folder="MNIST", grey=True,
        mirror_keeps_class=False,
    ),
    "cifar10": DatasetSpec(
        title="CIFAR-10", source="krizhevsky2009", images=(50_000, 10_000), folder="cifar-10-batches-py",
    ),
    "imagefolder": DatasetSpec(title="a folder of images"),
}  # fmt: skip
