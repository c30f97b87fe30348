"""`ddp-workbook run | report`: the course from the command line. Training alone is distributed_train.py."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ddp_workbook.errors import InputError, exit_with
from ddp_workbook.recipes import EMBEDDED, get_recipe


@dataclass(frozen=True)
class Run:
    """Execute notebooks 01 to 04 in order, which train both runs, compare them and write the report."""

    recipe: str = EMBEDDED
    """Named run; resnet50-cifar10 is the full course."""
    data_dir: Path = Path("data")
    """Folder with CIFAR-10 and MNIST."""
    epochs: int | None = None
    """Epochs of both runs, instead of the recipe's."""
    in_place: bool = False
    """For whoever changes a notebook: run all on their own defaults and keep the outputs in the notebooks."""


@dataclass(frozen=True)
class Report:
    """Write results/<recipe>/report.pdf from the records of finished runs."""

    recipe: str = EMBEDDED
    """Named run whose records to read."""
    results_dir: Path = Path("results")
    """Folder that holds <recipe>/*.json."""


def run(options: Run) -> None:
    """Raises InputError for options that cannot work, NotebookError when a cell fails."""
    from ddp_workbook.notebooks import run_course

    recipe = get_recipe(options.recipe)
    if options.epochs is not None and options.epochs < 1:
        raise InputError(f"--epochs must be at least 1, not {options.epochs}")
    if options.in_place:
        run_course(Path(), Path(), {})
        return
    parameters: dict[str, object] = {"RECIPE": options.recipe, "DATA_DIR": str(options.data_dir)}
    if options.epochs is not None:
        parameters["EPOCHS"] = options.epochs
    run_dir = recipe.run_dir
    run_course(Path(), run_dir / "notebooks", parameters)
    _print_summary(run_dir)


def _print_summary(run_dir: Path) -> None:
    """The results in a few lines, and where to look further."""
    import pandas as pd

    print()
    print(pd.read_csv(run_dir / "performance_comparison.csv", index_col=0).fillna("").to_string())
    print(f"\nexecuted notebooks: {run_dir / 'notebooks'}")
    print(f"report:             {run_dir / 'report.pdf'}")


def report(options: Report) -> None:
    """Raises InputError when a record is missing or does not fit."""
    from ddp_workbook.report.build import build_report

    get_recipe(options.recipe)
    print(build_report(options.results_dir / options.recipe))


COMMANDS = Annotated[Run, tyro.conf.subcommand("run")] | Annotated[Report, tyro.conf.subcommand("report")]


def main() -> None:
    from ddp_workbook.flags import parse

    try:
        options = parse(COMMANDS, sys.argv[1:], prog="ddp-workbook", description=__doc__)
        run(options) if isinstance(options, Run) else report(options)
    except InputError as error:
        exit_with(error, "ddp-workbook")
    except KeyboardInterrupt:
        sys.exit(130)
    except RuntimeError as error:  # a cell failed: its own error was told; the rest of a traceback would hide it
        print(f"ddp-workbook: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
