"""The report's numbers and verdicts about the two runs: what was trained, where, and how accurate it became."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

from ddp_workbook.analysis.speedup import EQUIVALENCE_MARGIN, accuracy_difference, is_equivalent, paired_answers
from ddp_workbook.analysis.tables import comparison_table, memory_table, summarize_run
from ddp_workbook.analysis.words import read_accuracy
from ddp_workbook.records.course import CourseSummary
from ddp_workbook.records.run import RunRecord
from ddp_workbook.records.timing import Interval
from ddp_workbook.report.inputs import Inputs, backend_name
from ddp_workbook.specs import DATASETS, MODELS, SMALL_IMAGE

PLAIN_NUMBERS = ("momentum", "weight_decay", "head_lr_scale", "label_smoothing", "step_gamma")
SAID_ELSEWHERE = ("parameters", "hardware", "torch")  # rows of the comparison that other tables of the report have


def runs_content(inputs: Inputs) -> dict:
    """What report.typ prints of the runs, as text."""
    baseline, distributed = inputs.baseline, inputs.distributed
    difference = accuracy_difference(baseline, distributed)
    return {
        "recipe": baseline.recipe,
        "date": datetime.fromisoformat(distributed.finished_at).strftime("%d %B %Y").lstrip("0"),
        "dataset": _dataset(baseline),
        "model": {"name": baseline.config.model} | asdict(MODELS[baseline.config.model]),
        "config": _config(baseline, distributed),
        "world": _world(baseline, distributed),
        "environment": _environment(baseline),
        "other_machine": inputs.other_machine,
        "on_cpu": baseline.environment.device == "cpu",
        "runs": {run.kind: _run(run) for run in (baseline, distributed)},
        "whole_runs": f"{baseline.train_seconds / distributed.train_seconds:.2f}",
        "table": _table(baseline, distributed),
        "memory": memory_table(baseline.parameters),
        "difference": difference.text("+.2f", scale=100),
        "accuracy": read_accuracy(baseline, distributed),
        "agreement": agreement(difference),
        "margin": f"{100 * EQUIVALENCE_MARGIN:g}",
        "paired": paired_answers(baseline, distributed) is not None,
        "recheck": recheck(inputs.summary),
    }


def _config(baseline: RunRecord, distributed: RunRecord) -> dict:
    config = baseline.config
    mirrors = DATASETS[baseline.dataset.name].mirror_keeps_class
    flips = config.augment and (mirrors if config.flip is None else config.flip)
    draws = {"crops": config.augment, "flips": flips, "dropout masks": config.dropout > 0}
    return (
        asdict(config)
        | {name: f"{getattr(config, name):g}" for name in PLAIN_NUMBERS}
        | {
            "lr": f"{config.peak_lr(1):g}",
            "flips": flips,
            "random": " and ".join(name for name, drawn in draws.items() if drawn),
            "hard": config.augment or config.label_smoothing > 0 or config.dropout > 0,
            "dropout": _percent(config.dropout, 0),
            "warmup": _percent(config.warmup, 0),
            "warms_up": config.warmup > 0,
            "batch_each": distributed.config.batch_size,
            "comm_hook": distributed.config.comm_hook,
            "parameters": f"{baseline.parameters:,}",
            "gradient_mib": f"{baseline.parameters * 4 / 2**20:.1f}",
        }
    )


def _world(baseline: RunRecord, distributed: RunRecord) -> dict:
    added = {"serial_threads": baseline.world.threads_per_process, "backend": backend_name(distributed)}
    return distributed.world.model_dump() | added


def _environment(run: RunRecord) -> dict:
    machine = run.environment
    return {
        "Processor": machine.cpu,
        "Cores": str(machine.cores),
        "Memory": f"{machine.memory_bytes / 2**30:.1f} GiB",
        "Accelerator": machine.accelerator or "none",
        "Device of both runs": machine.device,
        "Operating system": machine.os,
        "Python": machine.python,
        "PyTorch, torchvision": f"{machine.torch}, {machine.torchvision}",
        "Commit of the workbook": machine.git_commit or "not in a checkout",
    }


def _dataset(run: RunRecord) -> dict:
    spec = DATASETS[run.dataset.name]
    return asdict(spec) | {
        "train": f"{run.dataset.train_images:,}",
        "test": f"{run.dataset.test_images:,}",
        "classes": len(run.dataset.classes),
        "size": run.config.image_size,
        "small": run.config.image_size <= SMALL_IMAGE,
        "fingerprint": run.dataset.fingerprint[:16],
    }


def _run(run: RunRecord) -> dict:
    summary = summarize_run(run)
    return {
        "accuracy": _percent(run.test_accuracy),
        "interval": f"[{100 * summary.accuracy.low:.2f}, {100 * summary.accuracy.high:.2f}]",
        "trained_for": _duration(run.train_seconds),
        "rate": f"{run.images_per_second:.0f}",
        "worst_class": summary.worst_class,
        "worst_accuracy": _percent(summary.worst_class_accuracy, 1),
        "commit": run.environment.git_commit or "unknown",
    }


def _table(baseline: RunRecord, distributed: RunRecord) -> list[list[str]]:
    table = comparison_table([baseline, distributed]).drop(index=list(SAID_ELSEWHERE))
    return [[str(name), *map(str, row)] for name, row in zip(table.index, table.to_numpy(), strict=True)]


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} minutes"


def _percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f} %"


def agreement(difference: Interval) -> str:
    """Whether the accuracies differ or are equivalent, in words that the whole interval supports."""
    margin = f"{100 * EQUIVALENCE_MARGIN:g} points"
    if is_equivalent(difference):
        return f"The whole interval lies within {margin}: by that margin the accuracies are equivalent."
    if difference.low <= 0 <= difference.high:
        worst, reach = ("loss", -difference.low) if -difference.low > difference.high else ("gain", difference.high)
        return (
            f"No difference is shown, but equal accuracy (within {margin}) is not shown either: "
            f"a {worst} of up to {100 * reach:.1f} points is compatible with these data."
        )
    side = "more" if difference.value > 0 else "less"
    return f"The distributed run is {side} accurate, by more than the choice of test images explains."


def recheck(summary: CourseSummary) -> str:
    """Result of testing the saved model again in one process."""
    if summary.rechecked_disagreements == 0:
        return "reproduced every one of the recorded confusion counts"
    share = 100 * summary.rechecked_disagreements / summary.test_images
    return (
        f"classified {summary.rechecked_disagreements} of {summary.test_images:,} images ({share:.2f} %) differently: "
        f"borderline cases, decided by rounding, which depends on the number of threads"
    )
