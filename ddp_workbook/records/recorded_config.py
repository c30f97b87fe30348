"""A run's configuration as records hold it, those of earlier versions too."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated

from pydantic import BeforeValidator, ValidatorFunctionWrapHandler, WrapValidator

from ddp_workbook.config import TrainConfig
from ddp_workbook.errors import InputError

OLD_NAMES = {"accumulate": "grad_accum_steps", "lr_batch": "base_batch_size", "head_lr": "head_lr_scale"}


def _current_fields(config: object) -> object:
    """A recorded configuration with the names that its fields have today.

    Raises ValueError when one is missing (a default in its place could say what the run never did), or when two old
    fields exclude each other.
    """
    if not isinstance(config, dict):
        return config
    config = {OLD_NAMES.get(name, name): value for name, value in config.items()}
    if "gradient_compression" in config:  # comm_hook was two fields before
        averaging, compression = config.pop("averaging", "all-reduce"), config.pop("gradient_compression")
        if compression == "none":
            config["comm_hook"] = "allreduce" if averaging == "all-reduce" else averaging
        elif averaging == "all-reduce":
            config["comm_hook"] = compression
        else:
            raise ValueError("gradient_compression must be none unless averaging is all-reduce")
    config.setdefault("balance", "equal")  # before it was a field, every rank had equally many images
    config.setdefault("shard", "none")  # before it was a field, nothing was sharded
    missing = [field.name for field in fields(TrainConfig) if field.name not in config]
    if missing:
        raise ValueError(f"{', '.join(missing)} is missing: the file is of an older version")
    return config


def _named_by_its_file(config: object, check: ValidatorFunctionWrapHandler) -> TrainConfig:
    """Raises ValueError for a setting out of range: whoever reads the file then names it, as for other fields."""
    try:
        return check(config)
    except InputError as error:
        raise ValueError(str(error)) from None


RecordedConfig = Annotated[TrainConfig, WrapValidator(_named_by_its_file), BeforeValidator(_current_fields)]
