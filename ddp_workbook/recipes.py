"""The named runs. A recipe is a TrainConfig; its name is <model>-<dataset>."""

from __future__ import annotations

from dataclasses import replace

from ddp_workbook.config import TrainConfig
from ddp_workbook.errors import InputError
from ddp_workbook.specs import DATASETS, MODELS

DEFAULT = "resnet50-cifar10"  # what the course is about
EMBEDDED = "resnet50-digits"  # needs no download: the images come with scikit-learn

# The two older courseworks. The first one's learning rate belongs to its two processes of 32, the second one's to its
# serial run.
_MLP = TrainConfig(
    model="mlp", dataset="mnist", image_size=28, augment=False, epochs=5, batch_size=32, optimizer="adam", lr=0.001,
    base_batch_size=64, weight_decay=1e-5, dropout=0.2, label_smoothing=0.0, head_lr_scale=1.0, schedule="step",
    step_epochs=3, step_gamma=0.5, warmup=0.0,
)  # fmt: skip
_CNN = TrainConfig(
    model="cnn", dataset="mnist", image_size=28, augment=False, epochs=10, batch_size=64, lr=0.01, base_batch_size=64,
    weight_decay=0.0, dropout=0.5, label_smoothing=0.0, head_lr_scale=1.0, schedule="constant", warmup=0.0,
)  # fmt: skip

# Networks without BatchNorm and dropout: their settings were chosen on training images that were held out.
_VIT = TrainConfig(
    model="vit", dataset="cifar10", batch_size=64, optimizer="adamw", lr=0.001, base_batch_size=64, weight_decay=0.05,
    head_lr_scale=1.0,
)  # fmt: skip
_LSTM = replace(_VIT, model="lstm", dataset="mnist", image_size=28, augment=False, epochs=5, lr=0.003)

_TUNED = (
    TrainConfig(dataset="cifar10"),
    TrainConfig(
        dataset="digits", epochs=12, batch_size=64, lr=0.05, base_batch_size=64, warmup=0.15, label_smoothing=0.0
    ),
    TrainConfig(dataset="mnist", epochs=3),
    TrainConfig(dataset="imagefolder"),
    _MLP,
    _CNN,
    replace(_MLP, dataset="digits", epochs=30, step_epochs=18),
    replace(_CNN, dataset="digits", epochs=20),
    _VIT,
    replace(_VIT, dataset="digits", epochs=60, batch_size=32, base_batch_size=32),
    replace(_VIT, dataset="mnist", image_size=28, epochs=8),
    _LSTM,
    replace(_LSTM, dataset="digits", augment=True, epochs=60),
)
# A new data set can be trained on at once, and so can a new model, with the defaults of TrainConfig.
_UNTUNED = (
    *(TrainConfig(dataset=name) for name in DATASETS),
    *(TrainConfig(model=name, dataset="digits") for name in MODELS),
)

RECIPES: dict[str, TrainConfig] = {config.recipe: config for config in _TUNED}
RECIPES |= {config.recipe: config for config in _UNTUNED if config.recipe not in RECIPES}


def serial_recipe(name: str) -> TrainConfig:
    """The recipe for one process that takes the whole global batch that the learning rate belongs to."""
    recipe = get_recipe(name)
    return replace(recipe, batch_size=recipe.base_batch_size)


def get_recipe(name: str) -> TrainConfig:
    """The recipe's configuration. Raises InputError for a name that is not in RECIPES."""
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; choose one of: {', '.join(RECIPES)}")
    return RECIPES[name]
