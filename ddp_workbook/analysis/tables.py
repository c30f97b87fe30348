"""Tables: two runs side by side, the summary of the course, and common claims beside measurements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ddp_workbook.analysis.costmodel import bytes_moved, exposed, summed_collectives
from ddp_workbook.analysis.speedup import SpeedupRow, accuracy_difference, speedup_table
from ddp_workbook.analysis.statistics import wilson
from ddp_workbook.records.course import CourseSummary, RunSummary
from ddp_workbook.records.run import RunRecord
from ddp_workbook.records.timing import BatchSweep, BenchmarkRecord, SpeedupSummary, StepBreakdown

MIB = 2**20


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
    """Number of correct predictions on the test images."""
    return sum(row[i] for i, row in enumerate(run.confusion))


def class_accuracies(run: RunRecord) -> list[float]:
    """Share of each class's test images that is recognized, in class order."""
    return [row[i] / max(sum(row), 1) for i, row in enumerate(run.confusion)]


def summarize_run(run: RunRecord) -> RunSummary:
    """A run in a few numbers."""
    by_class = class_accuracies(run)
    worst = min(range(len(by_class)), key=by_class.__getitem__)
    return RunSummary(
        accuracy=wilson(correct(run), run.dataset.test_images),
        train_seconds=run.train_seconds,
        images_per_second=run.images_per_second,
        worst_class=run.dataset.classes[worst],
        worst_class_accuracy=by_class[worst],
    )


def speedup_summaries(rows: Sequence[SpeedupRow]) -> list[SpeedupSummary]:
    """Speedups as records have them."""
    return [SpeedupSummary(baseline=row.baseline, speedup=row.speedup, efficiency=row.efficiency.value) for row in rows]


def summarize(
    baseline: RunRecord, distributed: RunRecord, benchmark: BenchmarkRecord, disagreements: int
) -> CourseSummary:
    """What notebook 04 writes to test_summary.json; `disagreements`: images classified differently the second time."""
    return CourseSummary(
        recipe=baseline.recipe,
        test_images=baseline.dataset.test_images,
        baseline=summarize_run(baseline),
        distributed=summarize_run(distributed),
        accuracy_difference=accuracy_difference(baseline, distributed),
        rechecked_disagreements=disagreements,
        speedups=speedup_summaries(speedup_table(benchmark)),
    )


def memory_table(parameters: int) -> list[tuple[str, str]]:
    """(what, how much) of what one DDP process holds for a network with so many parameters, without activations.

    Every process has all of it, however many there are. The last two rows are for larger models: mixed precision with
    Adam, 2 + 2 bytes for weights and gradients and 4 + 4 + 4 for weights, momentum and variance in fp32 (Rajbhandari
    et al. 2020), and its shards. Views: DDP's gradient_as_bucket_view=True.
    """
    one, of_adam = 4 * parameters, 16 * parameters
    return [
        ("weights, fp32: 4 bytes per parameter", _mib(one)),
        ("gradients, fp32, also under bf16 autocast", _mib(one)),
        ("momentum of SGD, fp32 (Adam: two such values)", _mib(one)),
        ("DDP's buckets, unless gradients are views of them", _mib(one)),
        ("together, with SGD", f"{_mib(3 * one)} with views, as here; else {_mib(4 * one)}"),
        ("together, with Adam or AdamW", f"{_mib(4 * one)} with views, as here; else {_mib(5 * one)}"),
        ("activations", "not counted: they grow with the batch"),
        ("Adam in mixed precision: 16 bytes per parameter", _mib(of_adam)),
        ("the same, sharded over N processes (ZeRO, FSDP)", f"{_mib(of_adam)} / N"),
    ]


def _mib(size: float) -> str:
    return f"{size / MIB:,.1f} MiB"


def claims_table(breakdown: StepBreakdown, sweep: BatchSweep, benchmark: BenchmarkRecord) -> list[tuple[str, str, str]]:
    """(common claim, what is true, what was measured on this machine)."""
    size = breakdown.gradient_bytes
    moved = ", ".join(f"{bytes_moved(size, count) / MIB:.1f} MiB with {count}" for count in (2, 4, 16))
    run = benchmark.by_role("distributed")[0].name
    verdicts = [f"{row.speedup.text('.2f')} over {row.baseline}" for row in speedup_table(benchmark) if row.run == run]
    largest = sweep.all_reduce.samples[-1]
    return [
        (
            "optimizer.step() synchronises the gradients, and DDP sends the parameters around at every step",
            "DDP averages gradients in backward; it broadcasts parameters once, when it is constructed. Buffers "
            "(BatchNorm's running statistics) it does send at every forward pass, unless told otherwise",
            "notebook 03, section 3.4: weights equal after DDP(model), gradients equal after backward",
        ),
        (
            "with more processes, each has less to send",
            "in a ring all-reduce each process sends 2(N-1)/N times the gradients, which grows towards twice their "
            "size; no all-reduce by the processes alone sends less (Patarasuk & Yuan 2009). Only where switches add up "
            "the gradients in the network, each process sends them about once",
            f"by the formula {moved} processes for {size / MIB:.1f} MiB of gradients; measured: "
            f"{largest.bytes / MIB:.0f} MiB among {sweep.processes} took {1000 * np.mean(largest.seconds):.0f} ms",
        ),
        (
            "the time of the all-reduces is the overhead",
            "their sum also counts waiting, and what is hidden behind computing; overhead is by how much a step gets "
            "longer, a slower backward pass included",
            f"summed {1000 * summed_collectives(breakdown):.1f} ms a step, exposed "
            f"{exposed(breakdown).text('.1f', scale=1000)} ms",
        ),
        (
            "DDP is faster (or slower) than one process",
            "that depends on the baseline (its threads, its device) and on the work of each process between two "
            "all-reduces",
            f"{run}: " + "; ".join(verdicts),
        ),
        (
            "multiply the learning rate by the number of processes",
            "only as far as the global batch grows: the same batch, split among processes, keeps its learning rate. "
            "For SGD the rate grows in proportion to the batch, after a warm-up (Goyal et al. 2017); for Adam the "
            "theory gives the square root (Malladi et al. 2022)",
            "notebook 03, section 3.8: one step of 2 processes with half the batch each is the step of 1 process",
        ),
    ]
