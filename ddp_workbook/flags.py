"""Command-line flags to TrainConfig and back. The flags are the fields; tyro reads them."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

import tyro

from ddp_workbook.config import Keeping, TrainConfig
from ddp_workbook.errors import InputError
from ddp_workbook.recipes import DEFAULT, RECIPES, get_recipe


@dataclass(frozen=True, kw_only=True)
class _Flags(TrainConfig, Keeping):
    recipe_name: Annotated[str, tyro.conf.arg(name="recipe", metavar="{" + ",".join(RECIPES) + "}")] = DEFAULT
    """Named run that gives the defaults of all other flags."""


def parse_flags(arguments: Sequence[str], description: str) -> TrainConfig:
    """The recipe's configuration with the flags' changes. Raises InputError, in one line, for a bad flag."""
    return parse_run(arguments, description)[0]


def parse_run(arguments: Sequence[str], description: str) -> tuple[TrainConfig, Keeping]:
    """The same, with the flags that say how the run is kept."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--recipe", default=DEFAULT)
    try:
        name = first.parse_known_args(arguments)[0].recipe
    except argparse.ArgumentError as error:
        raise InputError(f"--recipe: {error.message}; choose one of: {', '.join(RECIPES)}") from None
    defaults = _Flags(**_values(get_recipe(name)), recipe_name=name)
    values = _values(parse(_Flags, arguments, default=defaults, description=description))
    values.pop("recipe_name")
    keeping = Keeping(**{field.name: values.pop(field.name) for field in fields(Keeping)})
    return TrainConfig(**values), keeping


def parse(schema: Any, arguments: Sequence[str], **options: Any) -> Any:
    """tyro.cli with its framed message turned into an InputError of one line; --help still prints and ends."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(schema, args=arguments, **options)
    except SystemExit as end:
        if end.code:
            raise InputError(_one_line(said.getvalue())) from None
        raise


def to_flags(config: TrainConfig) -> list[str]:
    """The shortest command line that parse_flags turns into `config`."""
    name = config.recipe
    flags = ["--recipe", name]
    for field, default in _values(get_recipe(name)).items():
        value = getattr(config, field)
        flag = field.replace("_", "-")
        if value == default:
            continue
        if isinstance(default, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", str(value)]
    return flags


def _values(config: TrainConfig) -> dict:
    return {field.name: getattr(config, field.name) for field in fields(config)}


def _one_line(box: str) -> str:
    """tyro's framed message without the frame and the pointer to --help."""
    text = re.sub(r"[╭╮╰╯│─]+", " ", box)
    text = re.split(r"For full helptext", text)[0]
    text = " ".join(text.split())
    text = re.sub(r"^(Value error|Invalid choice|Unrecognized options|Parsing error|Missing value)\s+(?=\S)", "", text)
    return text.replace("Argument helptext:", "- expected:") + " (--help lists all flags)"
