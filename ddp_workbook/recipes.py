"""The named runs. A recipe is a TrainConfig; its name is <model>-<dataset>."""

from __future__ import annotations

from ddp_workbook.config import TrainConfig
from ddp_workbook.errors import InputError

DEFAULT = "resnet50-cifar10"  # what the course is about
EMBEDDED = "resnet50-digits"  # needs no download: the images come with scikit-learn

_ALL = (
    TrainConfig(dataset="cifar10"),
    TrainConfig(dataset="digits", epochs=14, batch_size=64, lr=0.05, lr_batch=64, warmup=0.15, label_smoothing=0.0),
    TrainConfig(dataset="mnist", epochs=3),
    TrainConfig(dataset="imagefolder"),
)

RECIPES: dict[str, TrainConfig] = {config.recipe: config for config in _ALL}


def get_recipe(name: str) -> TrainConfig:
    """The recipe's configuration. Raises InputError for a name that is not in RECIPES."""
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; choose one of: {', '.join(RECIPES)}")
    return RECIPES[name]
