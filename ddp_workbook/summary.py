"""The two runs side by side, as a table and as the few numbers that the course concludes with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ddp_workbook.files import load_record
from ddp_workbook.record import CourseSummary, RunRecord, RunSummary, SpeedupSummary, load_run
from ddp_workbook.scaling import SpeedupRow, accuracy_difference, speedup_table, wilson
from ddp_workbook.timings import BenchmarkRecord, PerformanceMetrics

MIB = 2**20
BEGIN, END = "<!-- results: written by bench/publish.py -->", "<!-- end of results -->"


def table_column(run: RunRecord) -> dict[str, str]:
    """One run's column of the table."""
    world, low_high = run.world, wilson(correct(run), run.dataset.test_images)
    return {
        "test accuracy": f"{run.test_accuracy:.2%}",
        "95 % interval": f"{low_high.low:.2%} to {low_high.high:.2%}",
        "test loss (nats)": f"{run.test_loss:.3f}",
        "training time (s)": f"{run.train_seconds:.1f}",
        "evaluation time (s)": f"{run.evaluation_seconds:.1f}",
        "training rate (images/s)": f"{run.images_per_second:.0f}",
        "epochs": str(run.config.epochs),
        "processes x threads": f"{world.processes} x {world.threads_per_process}",
        "global batch": str(world.global_batch),
        "precision": world.precision,
        "backend": world.backend or "none",
        "parameters": f"{run.parameters:,}",
        "peak memory per process (MiB)": ", ".join(f"{size / MIB:.0f}" for size in run.peak_memory_bytes),
        "hardware": f"{run.environment.accelerator or run.environment.cpu}, {run.environment.cores} cores",
        "torch": run.environment.torch,
    }


def comparison_table(runs: Sequence[RunRecord], references: Sequence[RunRecord] = ()) -> pd.DataFrame:
    """A column per run, and one per reference run of the same recipe where there is one."""
    columns = {run.kind: table_column(run) for run in runs}
    columns |= {f"{run.kind}, reference": table_column(run) for run in references}
    return pd.DataFrame(columns)


def correct(run: RunRecord) -> int:
    """Number of test images classified right."""
    return sum(row[i] for i, row in enumerate(run.confusion))


def class_accuracies(run: RunRecord) -> list[float]:
    """Share of each class's test images that is recognised, in class order."""
    return [row[i] / max(sum(row), 1) for i, row in enumerate(run.confusion)]


def summarise_run(run: RunRecord) -> RunSummary:
    """A run in seven numbers."""
    by_class = class_accuracies(run)
    worst = min(range(len(by_class)), key=by_class.__getitem__)
    interval = wilson(correct(run), run.dataset.test_images)
    return RunSummary(
        test_accuracy=run.test_accuracy,
        accuracy_low=interval.low,
        accuracy_high=interval.high,
        train_seconds=run.train_seconds,
        images_per_second=run.images_per_second,
        worst_class=run.dataset.classes[worst],
        worst_class_accuracy=by_class[worst],
    )


def speedup_summaries(rows: Sequence[SpeedupRow]) -> list[SpeedupSummary]:
    """Speedups as they stand in records."""
    return [
        SpeedupSummary(
            baseline=row.baseline,
            speedup=row.speedup.value,
            low=row.speedup.low,
            high=row.speedup.high,
            efficiency=row.efficiency.value,
        )
        for row in rows
    ]


def summarise(
    baseline: RunRecord, distributed: RunRecord, benchmark: BenchmarkRecord, disagreements: int
) -> CourseSummary:
    """What notebook 04 writes to test_summary.json; `disagreements` is what testing the checkpoint again found."""
    difference = accuracy_difference(baseline, distributed)
    return CourseSummary(
        recipe=baseline.recipe,
        test_images=baseline.dataset.test_images,
        baseline=summarise_run(baseline),
        distributed=summarise_run(distributed),
        accuracy_difference=difference.value,
        accuracy_difference_low=difference.low,
        accuracy_difference_high=difference.high,
        rechecked_disagreements=disagreements,
        speedups=speedup_summaries(speedup_table(benchmark)),
    )


def readme_table(reference: Path) -> str:
    """The README's result table in Markdown, from the reference runs of the full course."""
    folder = reference / "resnet50-cifar10"
    (baseline, _), (distributed, _) = (load_run(folder, kind) for kind in ("baseline", "distributed"))
    benchmark = load_record(BenchmarkRecord, folder / "benchmark.json")
    lines = ["| ResNet-50, CIFAR-10 | baseline | distributed |", "|---|---|---|"]
    columns = [table_column(run) for run in (baseline, distributed)]
    kept = ("epochs", "processes x threads", "global batch", "precision", "test accuracy", "95 % interval")
    times = ("training time (s)", "evaluation time (s)", "training rate (images/s)", "peak memory per process (MiB)")
    lines += [f"| {name} | {columns[0][name]} | {columns[1][name]} |" for name in (*kept, *times)]
    for row in speedup_table(benchmark):
        lines.append(f"| speedup over {row.baseline} (95 % interval) | | {row.speedup:.2f} |")
    machine = baseline.environment
    lines += [
        "",
        f"Measured on {machine.accelerator or machine.cpu}, {machine.cores} cores, "
        f"{machine.memory_bytes / 2**30:.0f} GiB, torch {machine.torch}, at commit {machine.git_commit}. "
        f"The speedup compares short runs that took turns ({benchmark.rounds} rounds of {benchmark.steps} steps, at "
        f"commit {benchmark.environment.git_commit}); the two trainings happened one after the other, each as its own "
        f"command.",
    ]
    return "\n".join([*lines, "", *courseworks_table(reference)])


def courseworks_table(reference: Path) -> list[str]:
    """The MNIST recipes' accuracies and experiments, a row for each that has a reference, and how they were timed."""
    lines = [
        "| recipe | accuracy, serial | accuracy, 2 processes | speedup over one process on all cores (95 % interval) |",
        "|---|---|---|---|",
    ]
    timed = []
    for recipe in ("mlp-mnist", "cnn-mnist"):
        folder = reference / recipe
        if not (folder / "experiment" / "performance_metrics.json").exists():
            continue
        (baseline, _), (distributed, _) = (load_run(folder, kind) for kind in ("baseline", "distributed"))
        metrics = load_record(PerformanceMetrics, folder / "experiment" / "performance_metrics.json")
        speedups = []
        for row in metrics.process_counts:
            found = row.speedups[-1]
            crowded = ", oversubscribed" if row.oversubscribed else ""
            speedups.append(f"{row.processes}: {found.speedup:.2f} [{found.low:.2f}, {found.high:.2f}]{crowded}")
        accuracies = [f"{run.test_accuracy:.2%}" for run in (baseline, distributed)]
        lines.append(f"| `{recipe}` | {' | '.join(accuracies)} | {'; '.join(speedups)} |")
        timed.append(
            f"`{recipe}` in {metrics.rounds} rounds of {metrics.steps} steps at {metrics.environment.git_commit}"
        )
    return [*lines, "", f"Speedups timed: {'; '.join(timed)}."] if timed else []


def insert_table(readme: str, table: str) -> str:
    """The README's text with the table between its two markers."""
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{table}\n{END}{after}"
