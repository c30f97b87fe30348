"""An experiment over process counts, and its folder: complete after every round, so that it can be continued."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from ddp_workbook.analysis import plots, plots_speed
from ddp_workbook.analysis.speedup import HARDWARE, speedup_table, upper_bound_shares
from ddp_workbook.analysis.statistics import median_interval, spread_words
from ddp_workbook.analysis.tables import speedup_summaries
from ddp_workbook.config import PATHS, TrainConfig, first_difference
from ddp_workbook.devices import choose_device
from ddp_workbook.distributed.comm_hooks import check_comm_hook
from ddp_workbook.distributed.process_group import World
from ddp_workbook.errors import InputError
from ddp_workbook.measurement.alone import measuring_alone
from ddp_workbook.measurement.benchmark import empty_record, measure_together, require_rounds
from ddp_workbook.records.files import load_record, require_writable, save_record
from ddp_workbook.records.timing import BenchmarkRecord, Configuration, PerformanceMetrics, ProcessCountMetrics
from ddp_workbook.training.datasets import load_dataset
from ddp_workbook.training.loader import steps_per_epoch
from ddp_workbook.training.progress import seconds_left

SERIAL = "serial_results.json"
PARALLEL = "parallel_{}p_results.json"
METRICS = "performance_metrics.json"


def run_experiment(
    config: TrainConfig,
    process_counts: Sequence[int],
    rounds: int,
    steps: int | None,
    scaling: str,
    output_dir: Path,
    report: Callable[[str], None] = lambda line: print(line, flush=True),
) -> tuple[BenchmarkRecord, Path]:
    """Run it, or continue it when output_dir is the folder of the same experiment; returns the record and the folder.

    Whatever ends it, the folder holds all finished rounds. Raises InputError for the folder of another experiment, and
    while another benchmark or course is at work there.
    """
    counts = sorted(set(process_counts))
    if not counts:
        raise InputError("--process-counts needs at least one number, as in --process-counts 2 4 8")
    require_rounds(rounds)
    device = choose_device(config.device, max(counts))
    config = replace(config, device=device.type)  # the same kind for all configurations
    check_comm_hook(config.comm_hook, device, World(size=max(counts), local_size=max(counts)))
    empty = empty_record(config, counts, steps, scaling, new_processes=True)
    images = len(load_dataset(config).train)
    for each in empty.configurations:  # now, not in the worker that would train with it
        batch = each.batch_size // config.grad_accum_steps
        steps_per_epoch(images, replace(config, batch_size=batch), World(size=each.processes))
    continues = (output_dir / SERIAL).exists()
    if continues:
        require_same(load_experiment(output_dir), empty, output_dir)
    require_writable(output_dir)
    with measuring_alone(output_dir.parent if continues else output_dir):
        folder = output_dir if continues else new_folder(output_dir)
        try:
            return _measure_rounds(empty, rounds, folder, report), folder
        finally:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def new_folder(output_dir: Path) -> Path:
    """Make a folder experiment_<time> that nobody else has made."""
    first = output_dir / f"experiment_{datetime.now():%Y%m%d_%H%M%S}"
    folder, number = first, 1
    while True:
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
            folder = first.with_name(f"{first.name}_{number}")


def _measure_rounds(
    empty: BenchmarkRecord, rounds: int, folder: Path, report: Callable[[str], None]
) -> BenchmarkRecord:
    """The record after so many rounds, those that are already in the folder included."""
    earlier = None
    if (folder / SERIAL).exists():
        earlier = load_experiment(folder)
        report(f"continuing {folder} after round {earlier.rounds}")
    parts_of_round = len(empty.configurations) * (1 if empty.steps else empty.config.epochs)
    parts = parts_of_round * (rounds - (earlier.rounds if earlier else 0))
    done: list[float] = []  # when each part ended

    def on_part(name: str, rate: float) -> None:
        done.append(time.perf_counter())
        report(f"{name:<52} {rate:7.0f} images/s   {_time_left(done, parts)}")

    def on_round(records: list[BenchmarkRecord]) -> None:
        [record] = records
        save_experiment(record, folder)
        report(f"round {record.rounds}/{rounds} is in {folder}")

    try:
        return measure_together([earlier or empty], rounds, on_part, on_round)[0]
    except KeyboardInterrupt as stop:
        begun = (folder / SERIAL).exists()
        again = f"stopped; to continue: the same command with --output-dir {folder}"
        stop.args = (again if begun else "stopped in round 1",)  # the command's last line
        raise


def _time_left(done: Sequence[float], parts: int) -> str:
    """Minutes and seconds, from the second part on: the first one includes the start of the processes."""
    if len(done) < 2 or len(done) == parts:
        return ""
    seconds = seconds_left(done[-1] - done[0], len(done) - 1, parts - 1)
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f} left"


def require_same(earlier: BenchmarkRecord, new: BenchmarkRecord, folder: Path) -> None:
    """Raise InputError, naming the field, unless both are the same experiment on the same machine."""

    settings = {
        **{f"environment.{name}": [getattr(each.environment, name) for each in (earlier, new)] for name in HARDWARE},
        "configurations": [[configuration.name for configuration in each.configurations] for each in (earlier, new)],
        "scaling": [earlier.scaling, new.scaling],
        "steps": [earlier.steps, new.steps],
        "new_processes": [earlier.new_processes, new.new_processes],
    }
    name = first_difference(earlier.config, new.config, PATHS)
    differing = [f"config.{name}"] if name else []
    differing += [name for name, (theirs, ours) in settings.items() if theirs != ours]
    if differing:
        raise InputError(
            f"{folder} belongs to another experiment: its {differing[0]} differs; choose another --output-dir"
        )


def save_experiment(record: BenchmarkRecord, folder: Path) -> None:
    """One file for the serial configurations, one per process count; metrics and figures from two rounds on."""
    counts = [configuration.processes for configuration in record.by_role("distributed")]
    if record.rounds >= 2:
        save_record(metrics(record), folder / METRICS)
        figures = {
            "loss_curves": plots_speed.loss_curves,
            "speedup": plots_speed.speedup_by_processes,
            "efficiency": plots_speed.efficiency_by_processes,
            "training_comparison": plots_speed.training_comparison,
        }
        for name, draw in figures.items():
            plots.write_png(draw(record), folder / f"{name}.png")
    for count in counts:
        part = [configuration for configuration in record.configurations if configuration.processes == count]
        save_record(record.model_copy(update={"configurations": part}), folder / PARALLEL.format(count))
    serial = record.model_copy(update={"configurations": record.by_role("serial")})
    save_record(serial, folder / SERIAL)  # last: where it exists, the others do


def load_experiment(folder: Path) -> BenchmarkRecord:
    """All parts of an experiment, by process count, with the rounds that all of them have.

    Raises InputError for a file that is missing, corrupt, or a part of another experiment.
    """
    serial = load_record(BenchmarkRecord, folder / SERIAL)
    parts = {}
    for path in folder.glob(PARALLEL.format("*")):
        part = load_record(BenchmarkRecord, path)
        processes = part.configurations[0].processes
        if path.name != PARALLEL.format(processes) or _settings(part) != _settings(serial):
            raise InputError(f"{path} does not belong to the experiment in {folder / SERIAL}; remove it")
        parts[processes] = part
    rounds = min(part.rounds for part in (serial, *parts.values()))  # stopped between two files, one may be ahead
    ordered = [serial, *(parts[processes] for processes in sorted(parts))]
    configurations = [_first_rounds(each, rounds) for part in ordered for each in part.configurations]
    return serial.model_copy(update={"configurations": configurations})


def _settings(part: BenchmarkRecord) -> BenchmarkRecord:
    """All that the files of one experiment have in common."""
    return part.model_copy(update={"configurations": []})


def _first_rounds(configuration: Configuration, rounds: int) -> Configuration:
    cut = {name: getattr(configuration, name)[:rounds] for name in ("images_per_second", "losses", "accuracies")}
    return configuration.model_copy(update=cut)


def metrics(record: BenchmarkRecord) -> PerformanceMetrics:
    """The results, by process count."""
    rows, shares, machine = speedup_table(record), upper_bound_shares(record), record.environment
    process_counts = []
    for run in record.by_role("distributed"):
        rate = median_interval(run.images_per_second)
        process_counts.append(
            ProcessCountMetrics(
                run=run.name,
                processes=run.processes,
                threads=run.threads,
                oversubscribed=machine.device == "cpu" and run.processes * run.threads > machine.cores,
                images_per_second=rate,
                seconds_per_step=run.global_batch / rate.value,
                share_of_upper_bound=shares[run.name],
                speedups=speedup_summaries([row for row in rows if row.run == run.name]),
            )
        )
    return PerformanceMetrics(
        recipe=record.recipe,
        scaling=record.scaling,
        steps=record.steps,
        rounds=record.rounds,
        environment=record.environment,
        process_counts=process_counts,
    )


def describe(results: PerformanceMetrics) -> str:
    """The metrics as lines of a table."""
    spread = spread_words(results.rounds)
    lines = [f"{results.recipe}, {results.scaling} scaling, {results.rounds} rounds; in brackets: {spread}"]
    for row in results.process_counts:
        lines.append(f"{row.run}: {row.images_per_second.text('.0f')} images/s")
        lines += [f"    {each.speedup.text('.2f')} x {each.baseline}" for each in row.speedups]
        lines.append(f"    {row.share_of_upper_bound.text('.2f')} of the rate without communication")
    return "\n".join(lines)
