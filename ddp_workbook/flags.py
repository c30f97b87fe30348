"""Command-line flags to TrainConfig and back. Each field is a flag; tyro parses them."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

import tyro

from ddp_workbook.config import CheckpointOptions, TrainConfig, flag
from ddp_workbook.errors import InputError
from ddp_workbook.recipes import DEFAULT, RECIPES, get_recipe


@dataclass(frozen=True, kw_only=True)
class _Flags(TrainConfig, CheckpointOptions):
    recipe_name: Annotated[str, tyro.conf.arg(name="recipe", metavar="{" + ",".join(RECIPES) + "}")] = DEFAULT
    """Named run that gives the defaults of all other flags."""


def parse_run(arguments: Sequence[str], description: str) -> tuple[TrainConfig, CheckpointOptions]:
    """The recipe's configuration with the flags' changes, and the options. Raises InputError for a bad flag."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--recipe", default=DEFAULT)
    try:
        name = first.parse_known_args(arguments)[0].recipe
    except argparse.ArgumentError as error:
        raise InputError(f"--recipe: {error.message}; choose one of: {', '.join(RECIPES)}") from None
    defaults = _Flags(**_values(get_recipe(name)), recipe_name=name)
    flags = _one_line_errors(lambda: tyro.cli(_Flags, args=arguments, default=defaults, description=description))
    values = _values(flags)
    values.pop("recipe_name")
    options = CheckpointOptions(**{field.name: values.pop(field.name) for field in fields(CheckpointOptions)})
    return TrainConfig(**values), options


def _one_line_errors(parse: Callable[[], Any]) -> Any:
    """The result of a parser of tyro, whose error becomes an InputError of one line; --help still prints and exits."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return parse()
    except SystemExit as end:
        if end.code:
            raise InputError(_one_line(stderr.getvalue())) from None
        raise


def parse_command(
    commands: dict[str, Callable[..., None]], arguments: Sequence[str], **options: Any
) -> Callable[[], None]:
    """The command that the arguments name, with their values filled in but not called yet."""

    def deferred(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
        @functools.wraps(command)
        def fill_in(*values: Any, **named: Any) -> Callable[[], None]:
            return functools.partial(command, *values, **named)

        return fill_in

    return _one_line_errors(
        lambda: tyro.extras.subcommand_cli_from_dict(
            {name: deferred(command) for name, command in commands.items()}, args=arguments, **options
        )
    )


def to_flags(config: TrainConfig) -> list[str]:
    """The shortest command line that parse_run() turns into `config`."""
    name = config.recipe
    flags = ["--recipe", name]
    for field, default in _values(get_recipe(name)).items():
        value = getattr(config, field)
        if value == default:
            continue
        if isinstance(default, bool):
            flags.append(flag(field if value else f"no_{field}"))
        else:
            flags += [flag(field), str(value)]
    return flags


def _values(config: TrainConfig) -> dict:
    return {field.name: getattr(config, field.name) for field in fields(config)}


def _one_line(box: str) -> str:
    """tyro's message without its frame and its pointer to --help."""
    text = re.sub(r"[╭╮╰╯│─]+", " ", box)
    text = re.split(r"For full helptext", text)[0]
    text = " ".join(text.split())
    text = re.sub(r"^(Value error|Invalid choice|Unrecognized options|Parsing error|Missing value)\s+(?=\S)", "", text)
    return text.replace("Argument helptext:", "- expected:") + " (--help lists all flags)"
