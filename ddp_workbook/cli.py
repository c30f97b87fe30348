"""`ddp-workbook run | bench | predict | report | doctor`: the course from a shell. distributed_train.py trains."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ddp_workbook.errors import InputError, exit_with
from ddp_workbook.recipes import EMBEDDED, get_recipe, serial_recipe


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


@dataclass(frozen=True)
class Bench:
    """Time a recipe's training on several process counts beside its serial baselines and the no-communication bound."""

    recipe: str = "cnn-digits"
    """Named run. All processes live at once; a ResNet-50 takes 1 to 2 GB in each."""
    process_counts: tuple[int, ...] = (2, 4, 8)
    """How many processes to try."""
    repeats: int = 5
    """Rounds in which everything takes its turn, from fresh weights each time."""
    steps: int | None = None
    """Optimizer steps of each arrangement in a round (default: 50, of a ResNet-50 3, unless --epochs is given)."""
    epochs: int | None = None
    """Instead of steps: train this many whole epochs in each round, and test."""
    scaling: Literal["strong", "weak"] = "strong"
    """Strong: the recipe's global batch is shared out among the processes; weak: each process gets all of it."""
    averaging: Literal["all-reduce", "shared-memory"] = "all-reduce"
    """How the processes average gradients; shared-memory: on CPUs."""
    output_dir: Path = Path("results")
    """Gets a new folder experiment_<time>; or the folder of an unfinished experiment, to go on with it."""
    data_dir: Path = Path("data")
    """Folder with CIFAR-10 and MNIST."""


@dataclass(frozen=True)
class Predict:
    """Predict speedup, duration and cost of a recipe on a network of machines like this one."""

    bandwidth: str
    """Of the network, with its unit: 10Gbit."""
    latency: str
    """Of one message, with its unit: 50us."""
    recipe: str = EMBEDDED
    """Named run; notebook 04 must have measured it on this machine."""
    processes: int = 64
    """Most machines to predict for."""
    price: float | None = None
    """What one machine costs in an hour, in your currency."""
    results_dir: Path = Path("results")
    """Folder that holds <recipe>/survey.json, and gets <recipe>/prediction.png."""


@dataclass(frozen=True)
class Doctor:
    """Say what stands in the way of a run on this machine, and what mends it; exit code 1 when something does."""

    data_dir: Path = Path("data")
    """Folder with CIFAR-10 and MNIST."""
    results_dir: Path = Path("results")
    """Folder that a run writes its results into."""
    checkpoint_dir: Path = Path("checkpoints")
    """Folder that a run writes its model into."""


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


def bench(options: Bench) -> None:
    """Raises InputError for options that cannot work; on Ctrl-C says how to go on."""
    from ddp_workbook.benchmark import steps_per_round
    from ddp_workbook.experiment import describe, metrics, run_experiment

    if options.steps is not None and options.epochs is not None:
        raise InputError("give either --steps or --epochs, not both")
    config = replace(serial_recipe(options.recipe), data_dir=options.data_dir, averaging=options.averaging)
    if options.epochs is not None:
        config = replace(config, epochs=options.epochs)
    steps = steps_per_round(config.model) if options.steps is None and options.epochs is None else options.steps
    if steps is not None and steps < 1:
        raise InputError(f"--steps must be at least 1, not {steps}")
    found, folder = run_experiment(
        config, options.process_counts, options.repeats, steps, options.scaling, options.output_dir
    )
    print(f"\n{describe(metrics(found))}\n\nresults and figures: {folder}")


def predict(options: Predict) -> None:
    """Raises InputError for a quantity without unit, or when nothing was measured yet."""
    from ddp_workbook.prediction import predict_network

    print(
        predict_network(
            get_recipe(options.recipe),
            options.results_dir / options.recipe,
            options.bandwidth,
            options.latency,
            options.processes,
            options.price,
        )
    )


def doctor(options: Doctor) -> None:
    """Ends with code 1 when there is a fault."""
    from ddp_workbook.doctor import describe, examine

    findings = examine(options.data_dir, options.results_dir, options.checkpoint_dir)
    print(describe(findings))
    if any(one.state == "fault" for one in findings):
        sys.exit(1)


COMMANDS = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)
DO: dict[type, Callable] = {Run: run, Bench: bench, Predict: predict, Report: report, Doctor: doctor}


def main() -> None:
    from ddp_workbook.flags import parse

    try:
        options = parse(COMMANDS, sys.argv[1:], prog="ddp-workbook", description=__doc__)
        DO[type(options)](options)
    except InputError as error:
        exit_with(error, "ddp-workbook")
    except KeyboardInterrupt:
        sys.exit(130)
    except RuntimeError as error:  # a cell failed: its own error was told; the rest of a traceback would hide it
        print(f"ddp-workbook: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
