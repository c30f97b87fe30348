"""An experiment over process counts, and its folder: whole after every round, and to be continued from there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from ddp_workbook.benchmark import arrangements, empty_record, measure, require_rounds
from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import choose_device
from ddp_workbook.errors import InputError
from ddp_workbook.files import load_record, save_record
from ddp_workbook.results import require_writable
from ddp_workbook.scaling import HARDWARE, Interval, bound_shares, median_interval, speedup_table, spread_words
from ddp_workbook.shared_memory import require_shared_memory
from ddp_workbook.summary import speedup_summaries
from ddp_workbook.timings import Arrangement, BenchmarkRecord, Estimate, PerformanceMetrics, ProcessCountMetrics

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
    say: Callable[[str], None] = lambda line: print(line, flush=True),
) -> tuple[BenchmarkRecord, Path]:
    """Run it, or go on with it when output_dir is the folder of the same one; returns the record and the folder.

    Whatever stops it, the folder holds all rounds that were finished. Raises InputError for another one's folder.
    """
    counts = sorted(set(process_counts))
    if not counts:
        raise InputError("--process-counts needs at least one number, as in --process-counts 2 4 8")
    require_rounds(rounds)
    device = choose_device(config.device, max(counts))
    config = replace(config, device=device.type)  # one kind for all arrangements
    if config.averaging == "shared-memory":
        require_shared_memory(device, max(counts), max(counts))
    fresh = empty_record(config, arrangements(config, counts, scaling), steps, scaling)
    folder, earlier = output_dir, None
    if (output_dir / SERIAL).exists():
        earlier = load_experiment(output_dir)
        require_same(earlier, fresh, output_dir)
        say(f"going on with {output_dir} after round {earlier.rounds}")
    else:
        folder = output_dir / f"experiment_{datetime.now():%Y%m%d_%H%M%S}"
    clock = _Clock(
        rounds - (earlier.rounds if earlier else 0), len(fresh.arrangements) * (1 if steps else config.epochs)
    )

    def on_part(name: str, rate: float) -> None:
        say(f"{name:<52} {rate:7.0f} images/s   {clock.tick()}")

    def on_round(record: BenchmarkRecord) -> None:
        save_experiment(record, folder)
        say(f"round {record.rounds}/{rounds} is in {folder}")

    require_writable(output_dir)
    try:
        record = measure(config, counts, rounds, steps, scaling, earlier, on_part, on_round)
    except KeyboardInterrupt:
        begun = (folder / SERIAL).exists()
        say(f"stopped; to go on: the same command with --output-dir {folder}" if begun else "stopped before any round")
        raise
    return record, folder


class _Clock:
    """How much time is left, from the parts done so far."""

    def __init__(self, rounds: int, parts: int) -> None:
        self.left, self.done, self.started = rounds * parts, 0, time.perf_counter()

    def tick(self) -> str:
        if not self.done:
            self.started = time.perf_counter()  # the first part also waited for the processes to start
        self.left, self.done = self.left - 1, self.done + 1
        if self.done == 1 or self.left <= 0:
            return ""
        seconds = (time.perf_counter() - self.started) / (self.done - 1) * self.left
        return f"{seconds // 60:.0f}:{seconds % 60:02.0f} left"


def require_same(earlier: BenchmarkRecord, fresh: BenchmarkRecord, folder: Path) -> None:
    """Raise InputError, naming the field, unless both are the same experiment on the same machine."""

    def settings(record: BenchmarkRecord) -> dict[str, object]:
        plain = replace(record.config, data_dir=Path(), results_dir=Path(), checkpoint_dir=Path())
        machine = {f"environment.{name}": getattr(record.environment, name) for name in HARDWARE}
        names = [one.name for one in record.arrangements]
        plan = {"recipe": record.recipe, "arrangements": names, "scaling": record.scaling, "steps": record.steps}
        return plan | {"config": plain} | machine

    for (name, first), second in zip(settings(earlier).items(), settings(fresh).values(), strict=True):
        if first != second:
            raise InputError(f"{folder} belongs to another experiment: its {name} differs; choose another --output-dir")


def save_experiment(record: BenchmarkRecord, folder: Path) -> None:
    """The record in one file for the serial runs and one per process count; metrics and figures from two rounds on."""
    counts = [one.processes for one in record.by_role("distributed")]
    if record.rounds >= 2:
        save_record(metrics(record), folder / METRICS)
        _draw(record, folder)
    for count in counts:
        part = [one for one in record.arrangements if one.processes == count]
        save_record(record.model_copy(update={"arrangements": part}), folder / PARALLEL.format(count))
    serial = record.model_copy(update={"arrangements": record.by_role("serial")})
    save_record(serial, folder / SERIAL)  # last: where it is, the others are


def load_experiment(folder: Path) -> BenchmarkRecord:
    """All parts of an experiment, with the rounds that all of them have."""
    paths = sorted(folder.glob(PARALLEL.format("*")), key=lambda path: int(path.stem.split("_")[1].rstrip("p")))
    parts = [load_record(BenchmarkRecord, path) for path in (folder / SERIAL, *paths)]
    rounds = min(part.rounds for part in parts)  # stopped between two files, one may be a round ahead
    whole = [_first_rounds(one, rounds) for part in parts for one in part.arrangements]
    return parts[0].model_copy(update={"arrangements": whole})


def _first_rounds(one: Arrangement, rounds: int) -> Arrangement:
    cut = {name: getattr(one, name)[:rounds] for name in ("images_per_second", "losses", "accuracies")}
    return one.model_copy(update=cut)


def estimate(interval: Interval) -> Estimate:
    """An interval as it stands in a record."""
    return Estimate(value=interval.value, low=interval.low, high=interval.high)


def metrics(record: BenchmarkRecord) -> PerformanceMetrics:
    """What the experiment found, by process count."""
    rows, shares = speedup_table(record), bound_shares(record)
    found = []
    for run in record.by_role("distributed"):
        rate = median_interval(run.images_per_second)
        found.append(
            ProcessCountMetrics(
                run=run.name,
                processes=run.processes,
                threads=run.threads,
                oversubscribed="oversubscribed" in run.name,
                images_per_second=estimate(rate),
                seconds_per_step=run.global_batch / rate.value,
                share_of_bound=estimate(shares[run.name]),
                speedups=speedup_summaries([row for row in rows if row.run == run.name]),
            )
        )
    return PerformanceMetrics(
        recipe=record.recipe,
        scaling=record.scaling,
        steps=record.steps,
        rounds=record.rounds,
        environment=record.environment,
        process_counts=found,
    )


def describe(found: PerformanceMetrics) -> str:
    """The metrics as lines of a table."""
    lines = [
        f"{found.recipe}, {found.scaling} scaling, {found.rounds} rounds; in brackets: {spread_words(found.rounds)}"
    ]
    for row in found.process_counts:
        rate, share = row.images_per_second, row.share_of_bound
        lines.append(f"{row.run}: {rate.value:.0f} images/s [{rate.low:.0f}, {rate.high:.0f}]")
        for one in row.speedups:
            lines.append(f"    {one.speedup:.2f} [{one.low:.2f}, {one.high:.2f}] x {one.baseline}")
        lines.append(f"    {share.value:.2f} [{share.low:.2f}, {share.high:.2f}] of the rate without communication")
    return "\n".join(lines)


def _draw(record: BenchmarkRecord, folder: Path) -> None:
    from ddp_workbook import plots, plots_speed

    figures = {
        "loss_curves": plots_speed.loss_curves,
        "speedup": plots_speed.speedup_by_processes,
        "efficiency": plots_speed.efficiency_by_processes,
        "training_comparison": plots_speed.training_comparison,
    }
    for name, draw in figures.items():
        figure = draw(record)
        plots.save_png(figure, folder / f"{name}.png")
        plots.close(figure)
