"""Make a recipe's finished runs and newest experiment the reference; write the README's tables from it.

Also the numbers of our reference runs in the prose of README and notebooks, which stand between marks such as
<!--ref:strong_all--> and <!--/ref-->.

python bench/publish.py resnet50-cifar10
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import numpy as np

from ddp_workbook.analysis.break_even import break_even, curves
from ddp_workbook.analysis.costmodel import exposed, slowest, summed_collectives
from ddp_workbook.analysis.seeds import images_deviation, mean_difference, spread
from ddp_workbook.analysis.speedup import over_all_cores, speedup, speedup_table
from ddp_workbook.analysis.statistics import spread_words
from ddp_workbook.analysis.tables import table_column
from ddp_workbook.course.notebook import latest_experiment
from ddp_workbook.course.runner import COURSE
from ddp_workbook.measurement.experiment import load_experiment
from ddp_workbook.recipes import get_recipe
from ddp_workbook.records.batch_map import BatchMap
from ddp_workbook.records.files import load_record, save_text
from ddp_workbook.records.run import load_run
from ddp_workbook.records.seeds import SeedStudy
from ddp_workbook.records.timing import BenchmarkRecord, PerformanceMetrics, StepBreakdown

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
        shutil.rmtree(target / "experiment", ignore_errors=True)  # it may have other process counts
        shutil.copytree(experiment[0], target / "experiment")
        print(target / "experiment", "from", experiment[0])
    readme = Path("README.md")
    save_text(insert_table(readme.read_text(encoding="utf-8"), readme_table(target.parent)), readme)
    facts = reference_facts(target.parent)
    for name in ("README.md", *COURSE):
        save_text(fill(Path(name).read_text(encoding="utf-8"), facts), Path(name))


def reference_facts(reference: Path) -> dict[str, str]:
    """The numbers of our reference runs that README and notebooks quote, by the name in their marks."""
    folder = reference / "resnet50-cifar10"
    strong = load_record(BenchmarkRecord, folder / "benchmark.json")
    whole = load_record(BenchmarkRecord, folder / "benchmark_weak.json")
    weak = load_experiment(reference / "bench" / "resnet50-cifar10_weak_shared-memory")
    gloo = load_record(StepBreakdown, folder / "step_breakdown.json")
    shared = load_record(StepBreakdown, folder / "step_breakdown_shared_memory.json")
    epochs = [epoch.train_seconds for epoch in load_run(folder, "baseline")[1].epochs]
    one_thread, bound = strong.by_role("serial")[0], strong.by_role("no-communication")[0]
    return {
        "strong_all": over_all_cores(strong)[0][1].text(".2f"),
        "weak_all": over_all_cores(weak)[0][1].text(".2f"),
        "weak_one": speedup_table(weak)[0].speedup.text(".2f"),
        "bound_one": speedup(bound.images_per_second, one_thread.images_per_second).text(".2f"),
        "bound_all": speedup(bound.images_per_second, strong.by_role("serial")[-1].images_per_second).text(".2f"),
        "bound_weak": speedup(
            whole.by_role("no-communication")[0].images_per_second, whole.by_role("serial")[0].images_per_second
        ).text(".2f"),
        "step_ms": f"{1000 * np.median(slowest(gloo.no_sync)):.0f} ms",
        "gloo_ms": f"{exposed(gloo).text('.0f', scale=1000)} ms",
        "shared_step_ms": f"{1000 * np.median(slowest(shared.no_sync)):.0f} ms",
        "shared_ms": f"{exposed(shared).text('.0f', scale=1000)} ms",
        "summed_ms": f"{1000 * summed_collectives(gloo):.0f} ms",
        "first_epoch_ratio": f"{len(epochs) * epochs[0] / sum(epochs):.2f}",
        **break_evens(load_record(BatchMap, folder / "batch_map.json")),
    }


def break_evens(batch_map: BatchMap) -> dict[str, str]:
    """From which global batch on processes that share memory pay over one on all cores, for each model."""
    return {
        f"pays_{network.model}": break_even(curve).text(",.0f")
        for network in batch_map.networks
        for curve in curves(network)
        if (curve.baseline, curve.hook) == ("all cores", "shared-memory")
    }


def fill(text: str, facts: dict[str, str]) -> str:
    """The text with each fact between its marks. Raises KeyError for a mark with an unknown name."""
    return re.sub(r"(<!--ref:(\w+)-->).*?(<!--/ref-->)", lambda m: m[1] + facts[m[2]] + m[3], text)


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
        words = spread_words(benchmark.rounds)
        lines.append(f"| speedup in short runs, over {row.baseline} ({words}) | | {row.speedup.text('.2f')} |")
    weak_folder, weak = reference / "bench" / "resnet50-cifar10_weak_shared-memory", None
    if weak_folder.exists():
        weak = load_experiment(weak_folder)
        case = f"whole batch each, shared memory, over {{}} ({weak.rounds} rounds, {spread_words(weak.rounds)})"
        for row in speedup_table(weak):
            lines.append(f"| {case.format(row.baseline)} | | {row.speedup.text('.2f')} |")
    machine = baseline.environment
    lines += [
        "",
        f"Measured on {machine.accelerator or machine.cpu}, {machine.cores} cores, "
        f"{machine.memory_bytes / 2**30:.0f} GiB, torch {machine.torch}, at commit {machine.git_commit}. "
        f"The speedups compare interleaved short runs ({benchmark.rounds} rounds of {benchmark.steps} steps at commit "
        f"{benchmark.environment.git_commit}"
        + (f"; with a whole batch each at {weak.environment.git_commit}" if weak else "")
        + "). The two trainings happened one after the other, so the ratio of their times is another number.",
    ]
    tables = (lines, courseworks_table(reference), seeds_table(reference))
    return "\n\n".join("\n".join(table) for table in tables if table)


def courseworks_table(reference: Path) -> list[str]:
    """The MNIST recipes' accuracies and experiments, a row for each that has a reference, and how they were timed."""
    lines = [
        "| recipe | accuracy, serial | accuracy, 2 processes "
        "| processes: speedup over one process on all cores [interval] |",
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
            f"`{recipe}` in {metrics.rounds} rounds of {metrics.steps} steps ({spread_words(metrics.rounds)}) at "
            f"{metrics.environment.git_commit}, torch {metrics.environment.torch}"
        )
    return [*lines, "", f"Speedups timed: {'; '.join(timed)}."] if timed else []


def seeds_table(reference: Path) -> list[str]:
    """Accuracies of several seeds as mean and range, a row for each recipe whose reference has a study of seeds."""
    lines = [
        "| recipe | seeds | accuracy, serial: mean (range) | accuracy, distributed: mean (range) "
        "| mean difference in points (95 % over seeds) | standard deviation by the choice of test images, points |",
        "|---|---|---|---|---|---|",
    ]
    studies = [load_record(SeedStudy, path) for path in sorted(reference.glob("*/seeds.json"))]
    without_0 = 0
    for study in studies:
        serial, distributed = (spread(study.accuracies(kind)).text for kind in ("baseline", "distributed"))
        difference = mean_difference(study)
        without_0 += not difference.low <= 0 <= difference.high
        by_images = f"{100 * images_deviation(study, 'baseline'):.2f}"
        row = (study.recipe, len(study.pairs), serial, distributed, difference.text("+.2f", scale=100), by_images)
        lines.append("| `{}` | {} | {} | {} | {} | {} |".format(*row))
    read = f"Intervals of the difference that leave out 0: {without_0} of {len(studies)}."
    chance = " Without any difference, one in twenty does so by chance." if without_0 else ""
    return [*lines, "", read + chance] if studies else []


def insert_table(readme: str, table: str) -> str:
    """The README's text with the table between its two markers."""
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


if __name__ == "__main__":
    main(*sys.argv[1:])
