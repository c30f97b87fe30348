"""An experiment over process counts, and its folder: complete after every round, so that it can be continued."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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
from ddp_workbook.measurement.benchmark import empty_record, measure, require_rounds
from ddp_workbook.records.files import load_record, require_writable, save_record
from ddp_workbook.records.timing import BenchmarkRecord, Configuration, PerformanceMetrics, ProcessCountMetrics
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

    Whatever ends it, the folder holds all finished rounds. Raises InputError for the folder of another experiment.
    """
    counts = sorted(set(process_counts))
    if not counts:
        raise InputError("--process-counts needs at least one number, as in --process-counts 2 4 8")
    require_rounds(rounds)
    device = choose_device(config.device, max(counts))
    config = replace(config, device=device.type)  # the same kind for all configurations
    check_comm_hook(config.comm_hook, device, World(size=max(counts), local_size=max(counts)))
    empty = empty_record(config, counts, steps, scaling)
    folder, earlier = output_dir, None
    if (output_dir / SERIAL).exists():
        earlier = load_experiment(output_dir)
        require_same(earlier, empty, output_dir)
        report(f"continuing {output_dir} after round {earlier.rounds}")
    else:
        folder = output_dir / f"experiment_{datetime.now():%Y%m%d_%H%M%S}"
    parts = len(empty.configurations) * (1 if steps else config.epochs) * (rounds - (earlier.rounds if earlier else 0))
    done: list[float] = []  # when each part ended

    def on_part(name: str, rate: float) -> None:
        done.append(time.perf_counter())
        report(f"{name:<52} {rate:7.0f} images/s   {_time_left(done, parts)}")

    def on_round(record: BenchmarkRecord) -> None:
        save_experiment(record, folder)
        report(f"round {record.rounds}/{rounds} is in {folder}")

    require_writable(output_dir)
    try:
        record = measure(config, counts, rounds, steps, scaling, earlier, on_part, on_round)
    except KeyboardInterrupt:
        begun = (folder / SERIAL).exists()
        report(f"stopped; to continue: the same command with --output-dir {folder}" if begun else "stopped in round 1")
        raise
    return record, folder


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
    """All parts of an experiment, with the rounds that all of them have."""
    paths = sorted(folder.glob(PARALLEL.format("*")), key=lambda path: int(path.stem.split("_")[1].rstrip("p")))
    parts = [load_record(BenchmarkRecord, path) for path in (folder / SERIAL, *paths)]
    rounds = min(part.rounds for part in parts)  # stopped between two files, one may be a round ahead
    configurations = [_first_rounds(each, rounds) for part in parts for each in part.configurations]
    return parts[0].model_copy(update={"configurations": configurations})


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
