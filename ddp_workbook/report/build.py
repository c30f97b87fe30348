"""From records to results/<recipe>/report.pdf: numbers and verdicts are computed here, report.typ is the prose."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import typst
from matplotlib.figure import Figure

from ddp_workbook.analysis import plots, plots_speed
from ddp_workbook.analysis.speedup import (
    accuracy_difference,
    require_comparable,
    speedup_table,
    upper_bound_shares,
    verdict,
)
from ddp_workbook.analysis.tables import claims_table, class_accuracies, comparison_table, summarize_run
from ddp_workbook.errors import InputError
from ddp_workbook.records.course import CourseSummary
from ddp_workbook.records.files import load_record, write_atomically
from ddp_workbook.records.run import HistoryRecord, RunRecord, load_run
from ddp_workbook.records.timing import BatchSweep, BenchmarkRecord, Interval, StepBreakdown
from ddp_workbook.report.costs import cost_figures, costs_content
from ddp_workbook.report.members import TEAM_FILE, Team, load_team
from ddp_workbook.specs import DATASETS, MODELS

HERE = Path(__file__).resolve().parent
PLAIN_NUMBERS = ("momentum", "weight_decay", "head_lr_scale", "label_smoothing")
UNUSABLE = (
    ValueError,
    LookupError,
    ArithmeticError,
    typst.TypstError,
)  # raised while drawing numbers that make no sense


def build_report(run_dir: Path, team_file: Path = TEAM_FILE) -> Path:
    """Write run_dir/report.pdf from the records in run_dir, atomically, and return its path.

    Raises InputError when a record or report.toml is missing or does not fit.
    """
    team = load_team(team_file)
    runs = [load_run(run_dir, kind) for kind in ("baseline", "distributed")]
    require_comparable(runs[0][0], runs[1][0])
    benchmark = load_record(BenchmarkRecord, run_dir / "benchmark.json")
    summary = load_record(CourseSummary, run_dir / "test_summary.json")
    breakdown = load_record(StepBreakdown, run_dir / "step_breakdown.json")
    sweep = load_record(BatchSweep, run_dir / "batch_sweep.json")
    try:
        pdf = _compile(team, runs, benchmark, summary, breakdown, sweep)
    except UNUSABLE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"no report can be made from {run_dir}/*.json ({reason}); run notebook 04 again") from error
    except OSError as error:
        raise InputError(
            f"cannot make the report in {tempfile.gettempdir()} ({error.strerror or error}); free some space"
        ) from error
    target = run_dir / "report.pdf"
    write_atomically(target, lambda file: file.write(pdf))
    return target


def _compile(
    team: Team,
    runs: list[tuple[RunRecord, HistoryRecord]],
    benchmark: BenchmarkRecord,
    summary: CourseSummary,
    breakdown: StepBreakdown,
    sweep: BatchSweep,
) -> bytes:
    """The PDF. typst works in a temporary folder and reads nothing outside it."""
    (baseline, baseline_history), (distributed, distributed_history) = runs
    with tempfile.TemporaryDirectory(prefix="report-") as folder:
        root = Path(folder)
        for name in ("report.typ", "layout.typ", "diagrams.typ", "references.yml"):
            shutil.copy(HERE / name, root / name)
        figures = _figures([baseline, distributed], [baseline_history, distributed_history], benchmark)
        for name, figure in (figures | cost_figures(breakdown, sweep, benchmark)).items():
            (root / f"{name}.svg").write_bytes(plots.to_svg(figure))
        content = _content(team, baseline, distributed, benchmark, summary)
        content |= {"costs": costs_content(breakdown, sweep), "claims": claims_table(breakdown, sweep, benchmark)}
        (root / "data.json").write_text(json.dumps(content, default=str), encoding="utf-8")
        return typst.compile(
            str(root / "report.typ"),
            root=str(root),
            ignore_system_fonts=True,
            pdf_standards="ua-1",
            timestamp=int(datetime.fromisoformat(distributed.finished_at).timestamp()),
        )


def _figures(runs: list[RunRecord], histories: list[HistoryRecord], benchmark: BenchmarkRecord) -> dict[str, Figure]:
    return {
        "curves": plots.training_curves(histories),
        "comparison": plots.baseline_vs_distributed(runs, histories),
        "confusion": plots.confusion_matrices(runs),
        "per_class": plots.per_class_accuracy(runs),
        "speedup": plots_speed.speedup_analysis(benchmark),
    }


def _content(
    team: Team, baseline: RunRecord, distributed: RunRecord, benchmark: BenchmarkRecord, summary: CourseSummary
) -> dict:
    """Everything that report.typ prints, as text: it neither computes nor rounds."""
    config, machine = baseline.config, baseline.environment
    difference = accuracy_difference(baseline, distributed)
    return {
        "team": team.model_dump(),
        "recipe": baseline.recipe,
        "date": datetime.fromisoformat(distributed.finished_at).strftime("%d %B %Y").lstrip("0"),
        "dataset": _dataset(baseline),
        "model": {"name": config.model} | asdict(MODELS[config.model]),
        "config": asdict(config)
        | {name: f"{getattr(config, name):g}" for name in PLAIN_NUMBERS}
        | {
            "lr": f"{config.peak_lr(1):g}",
            "hard": config.augment or config.label_smoothing > 0 or config.dropout > 0,
            "dropout": _percent(config.dropout, 0),
            "warmup": _percent(config.warmup, 0),
            "batch_each": distributed.config.batch_size,
            "comm_hook": distributed.config.comm_hook,
            "parameters": f"{baseline.parameters:,}",
            "gradient_mib": f"{baseline.parameters * 4 / 2**20:.0f}",
        },
        "world": distributed.world.model_dump() | {"serial_threads": baseline.world.threads_per_process},
        "environment": {
            "Processor": machine.cpu,
            "Cores": str(machine.cores),
            "Memory": f"{machine.memory_bytes / 2**30:.1f} GiB",
            "Accelerator": machine.accelerator or "none",
            "Device of both runs": machine.device,
            "Operating system": machine.os,
            "Python": machine.python,
            "PyTorch": machine.torch,
            "torchvision": machine.torchvision,
            "Commit of the workbook": machine.git_commit or "not in a checkout",
        },
        "runs": {run.kind: _run(run) for run in (baseline, distributed)},
        "table": _table(baseline, distributed),
        "classes": _classes(baseline, distributed),
        "difference": _points(difference),
        "agreement": agreement(difference),
        "recheck": recheck(summary),
        "speedups": [
            {
                "baseline": row.baseline,
                "speedup": f"{row.speedup.value:.2f}",
                "interval": f"{row.speedup.low:.2f} to {row.speedup.high:.2f}",
                "efficiency": _percent(row.efficiency.value, 0),
                "verdict": verdict(row.speedup),
            }
            for row in speedup_table(benchmark)
        ],
        "benchmark": {"rounds": benchmark.rounds, "steps": benchmark.steps, "spread": spread(benchmark)},
        "upper_bound": next(iter(upper_bound_shares(benchmark).values())).text(".2f"),
        "whole_runs": f"{baseline.train_seconds / distributed.train_seconds:.2f}",
    }


def _dataset(run: RunRecord) -> dict:
    spec = DATASETS[run.dataset.name]
    return asdict(spec) | {
        "train": f"{run.dataset.train_images:,}",
        "test": f"{run.dataset.test_images:,}",
        "classes": len(run.dataset.classes),
        "size": run.config.image_size,
        "fingerprint": run.dataset.fingerprint[:16],
    }


def _run(run: RunRecord) -> dict:
    summary = summarize_run(run)
    return {
        "accuracy": _percent(run.test_accuracy),
        "interval": f"{_percent(summary.accuracy.low)} to {_percent(summary.accuracy.high)}",
        "train_minutes": f"{run.train_seconds / 60:.1f}",
        "rate": f"{run.images_per_second:.0f}",
        "worst_class": summary.worst_class,
        "worst_accuracy": _percent(summary.worst_class_accuracy),
        "commit": run.environment.git_commit or "unknown",
    }


def _table(baseline: RunRecord, distributed: RunRecord) -> list[list[str]]:
    table = comparison_table([baseline, distributed])
    return [[str(name), *map(str, row)] for name, row in zip(table.index, table.to_numpy(), strict=True)]


def _classes(baseline: RunRecord, distributed: RunRecord) -> list[list[str]]:
    rows = []
    pairs = zip(class_accuracies(baseline), class_accuracies(distributed), strict=True)
    for index, (name, (first, second)) in enumerate(zip(baseline.dataset.classes, pairs, strict=True)):
        images = sum(baseline.confusion[index])
        rows.append([name, str(images), _percent(first), _percent(second), f"{100 * (second - first):+.1f}"])
    return rows


def _percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f} %"


def _points(difference: Interval) -> dict:
    value, low, high = (100 * x for x in (difference.value, difference.low, difference.high))
    return {"value": f"{value:+.2f}", "interval": f"{low:+.2f} to {high:+.2f}"}


def agreement(difference: Interval) -> str:
    """Whether the accuracies differ, in words that the interval supports."""
    if difference.low <= 0 <= difference.high:
        within = "within" if abs(difference.value) <= 0.015 else "more than"
        return f"The difference could be chance: its interval contains zero. It is {within} 1.5 points."
    side = "more" if difference.value > 0 else "less"
    return f"The distributed run is {side} accurate, by more than the test set's size explains."


def recheck(summary: CourseSummary) -> str:
    """Result of testing the saved model again in one process."""
    if summary.rechecked_disagreements == 0:
        return "reproduced every one of the recorded confusion counts"
    share = 100 * summary.rechecked_disagreements / summary.test_images
    return (
        f"classified {summary.rechecked_disagreements} of {summary.test_images:,} images ({share:.2f} %) differently: "
        f"borderline cases, decided by rounding, which depends on the number of threads"
    )


def spread(benchmark: BenchmarkRecord) -> str:
    """The widest range of rates that a configuration showed over the rounds."""
    widest = max(benchmark.configurations, key=lambda c: max(c.images_per_second) / max(min(c.images_per_second), 1e-9))
    low, high = min(widest.images_per_second), max(widest.images_per_second)
    return f"the rate of {widest.name} was between {low:.0f} and {high:.0f} images/s"
