"""Make a recipe's finished runs and newest experiment the reference, and write the README's table from it.

python bench/publish.py resnet50-cifar10
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from ddp_workbook.analysis.speedup import speedup_table
from ddp_workbook.analysis.tables import table_column
from ddp_workbook.course.notebook import latest_experiment
from ddp_workbook.recipes import get_recipe
from ddp_workbook.records.files import load_record, save_text
from ddp_workbook.records.run import load_run
from ddp_workbook.records.timing import BenchmarkRecord, PerformanceMetrics

KEPT = ("*.json", "*.png", "*.csv", "*.txt", "*.pdf")
BEGIN, END = "<!-- results: written by bench/publish.py -->", "<!-- end of results -->"


def main(recipe: str) -> None:
    get_recipe(recipe)
    source, target = Path("results") / recipe, Path("results") / "reference" / recipe
    target.mkdir(parents=True, exist_ok=True)
    for pattern in KEPT:
        for path in source.glob(pattern):
            shutil.copy(path, target / path.name)
            print(target / path.name)
    experiment = latest_experiment(recipe)
    if experiment and experiment[0] != target / "experiment":
        shutil.copytree(experiment[0], target / "experiment", dirs_exist_ok=True)
        print(target / "experiment", "from", experiment[0])
    readme = Path("README.md")
    save_text(insert_table(readme.read_text(encoding="utf-8"), readme_table(target.parent)), readme)


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
        lines.append(f"| speedup over {row.baseline} (95 % interval) | | {row.speedup.text('.2f')} |")
    machine = baseline.environment
    lines += [
        "",
        f"Measured on {machine.accelerator or machine.cpu}, {machine.cores} cores, "
        f"{machine.memory_bytes / 2**30:.0f} GiB, torch {machine.torch}, at commit {machine.git_commit}. "
        f"The speedup compares interleaved short runs ({benchmark.rounds} rounds of {benchmark.steps} steps, at "
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
            last = row.speedups[-1].speedup
            crowded = ", oversubscribed" if row.oversubscribed else ""
            speedups.append(f"{row.processes}: {last.text('.2f')}{crowded}")
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


if __name__ == "__main__":
    main(*sys.argv[1:])
