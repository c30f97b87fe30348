"""Helpers of the notebooks: the choice made in notebook 01, their durations, and the %%ranks cell magic."""

from __future__ import annotations

import platform
import time
from dataclasses import replace
from pathlib import Path

import torch
import torchvision
from IPython import get_ipython

from ddp_workbook.analysis.speedup import HARDWARE
from ddp_workbook.config import TrainConfig
from ddp_workbook.course.one_course import choosing
from ddp_workbook.devices import available_cores, choose_device, describe_environment
from ddp_workbook.distributed.ranks import run_on_ranks
from ddp_workbook.errors import InputError
from ddp_workbook.measurement.experiment import SERIAL, load_experiment
from ddp_workbook.recipes import get_recipe, serial_recipe
from ddp_workbook.records.course import CourseChoice, NotebookTimes
from ddp_workbook.records.files import load_record, save_record
from ddp_workbook.records.run import HistoryRecord, RunKind, RunRecord, load_run
from ddp_workbook.records.timing import BenchmarkRecord

CHOICE_FILE = Path("results") / "course.json"
REFERENCE = Path("results") / "reference"
_clock = {"started": 0.0, "notebook": "", "recipe": ""}


def course_config(choice: CourseChoice) -> TrainConfig:
    """The baseline's configuration under the course's choice."""
    recipe = serial_recipe(choice.recipe)
    return replace(
        recipe,
        data_dir=Path(choice.data_dir),
        device=choice.device,
        epochs=recipe.epochs if choice.epochs is None else choice.epochs,
    )


def distributed_config(config: TrainConfig, processes: int) -> TrainConfig:
    """The baseline's configuration with its global batch split evenly among the processes."""
    if config.batch_size % processes:
        raise InputError(f"a batch of {config.batch_size} cannot be split evenly among {processes} processes")
    return replace(config, batch_size=config.batch_size // processes)


def choose(
    recipe: str, data_dir: str, processes: int, epochs: int | None, predicted_seconds: float | None = None
) -> tuple[CourseChoice, TrainConfig]:
    """Check the reader's choice, save it for the other notebooks, and return it with the baseline's configuration.

    Both runs of the course must use the same kind of device, so it is one that several processes can share.
    `predicted_seconds`: how long the baseline should take, evaluation included. Raises InputError, too, while
    `ddp-workbook run` works here with a choice of its own.
    """
    get_recipe(recipe)
    device = choose_device("auto", processes).type
    choice = CourseChoice(
        recipe=recipe,
        data_dir=data_dir,
        device=device,
        processes=processes,
        epochs=epochs,
        predicted_seconds=predicted_seconds,
    )
    config = course_config(choice)
    distributed_config(config, processes)
    with choosing(CHOICE_FILE.parent):
        save_record(choice, CHOICE_FILE)
    _clock["recipe"] = recipe
    return choice, config


def load_choice() -> tuple[CourseChoice, TrainConfig]:
    """The choice that notebook 01 saved, and the baseline's configuration under it."""
    try:
        choice = load_record(CourseChoice, CHOICE_FILE)
    except InputError as error:
        raise InputError(f"{error} (run notebook 01 first: it makes {CHOICE_FILE})") from None
    _clock["recipe"] = choice.recipe
    return choice, course_config(choice)


def begin(notebook: str) -> None:
    """First cell of a notebook: prints versions, device and reference times, and registers the %%ranks magic."""
    _clock.update(started=time.perf_counter(), notebook=notebook, recipe="")
    shell = get_ipython()
    if shell is not None:
        shell.register_magic_function(_ranks, magic_kind="cell", magic_name="ranks")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}")
    print(f"device: {choose_device('auto')}, {available_cores()} CPU cores")
    for recipe_dir in sorted(REFERENCE.glob("*")):
        times = _times(recipe_dir)
        if notebook in times.seconds:
            run, _ = load_run(recipe_dir, "baseline")
            print(
                f"reference time: {_duration(times.seconds[notebook])} for {recipe_dir.name} "
                f"on {run.environment.cpu}, {run.environment.cores} cores"
            )


def finish(reused: bool = False) -> None:
    """Last cell of a notebook: prints how long it took here, and saves it unless an earlier training was reused."""
    seconds = time.perf_counter() - _clock["started"]
    if reused:
        print(f"this notebook took {_duration(seconds)} here, with the training of an earlier run")
        return
    folder = Path("results") / _clock["recipe"]
    try:
        earlier = _times(folder).seconds
    except InputError as error:
        earlier = {}
        print(f"the earlier times are lost ({str(error).partition(';')[0]}); a new file replaces them")
    save_record(NotebookTimes(seconds=earlier | {_clock["notebook"]: seconds}), folder / "notebook_times.json")
    print(f"this notebook took {_duration(seconds)} here")


def _times(folder: Path) -> NotebookTimes:
    path = folder / "notebook_times.json"
    return load_record(NotebookTimes, path) if path.exists() else NotebookTimes(seconds={})


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def reference_run(recipe: str, kind: RunKind) -> tuple[RunRecord, HistoryRecord] | None:
    """Our own full run of the recipe, to compare with the reader's; None where there is none."""
    folder = REFERENCE / recipe
    return load_run(folder, kind) if (folder / f"{kind}_metrics.json").exists() else None


def reference_benchmark(recipe: str) -> BenchmarkRecord | None:
    """Our own interleaved timings of the recipe; None where there are none."""
    path = REFERENCE / recipe / "benchmark.json"
    return load_record(BenchmarkRecord, path) if path.exists() else None


def latest_experiment(recipe: str) -> tuple[Path, BenchmarkRecord] | None:
    """The newest experiment with this recipe under results/, else ours; None where there is none.

    One that cannot be read is named and left out.
    """
    folders = [*sorted(Path("results").glob("experiment_*"), reverse=True), REFERENCE / recipe / "experiment"]
    for folder in folders:
        if not (folder / SERIAL).exists():  # stopped before its first round
            continue
        try:
            record = load_experiment(folder)
        except InputError as error:
            print(f"left out: {error}")
            continue
        if record.recipe == recipe and record.rounds >= 2:
            return folder, record
    return None


def is_of_this_machine(record: BenchmarkRecord, config: TrainConfig) -> bool:
    """Whether an experiment split the batch of `config` on this machine: then it can check predictions."""
    here = describe_environment(choose_device(config.device))
    same_machine = all(getattr(record.environment, name) == getattr(here, name) for name in HARDWARE)
    return same_machine and record.scaling == "strong" and record.by_role("serial")[0].global_batch == config.batch_size


def _ranks(line: str, cell: str) -> None:
    """%%ranks N: run the cell's code as a program on N processes, with the environment variables of torchrun."""
    try:
        processes = int(line)
    except ValueError:
        raise InputError(f"%%ranks needs a number of processes, as in %%ranks 2; not {line!r}") from None
    run_on_ranks(cell, processes)
