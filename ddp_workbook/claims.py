"""Popular sentences about DDP beside what was measured. Needs records alone, no torch."""

from __future__ import annotations

import numpy as np

from ddp_workbook.costmodel import bytes_moved, exposed
from ddp_workbook.scaling import speedup_table
from ddp_workbook.timings import AnatomyRecord, BenchmarkRecord, SurveyRecord

MIB = 2**20


def claims_table(
    anatomy: AnatomyRecord, survey: SurveyRecord, benchmark: BenchmarkRecord
) -> list[tuple[str, str, str]]:
    """(what is often read, what is so, what was measured on this machine)."""
    found = exposed(anatomy)
    summed = float(np.median([step.collectives for rank in anatomy.averaged for step in rank]))
    size = anatomy.gradient_bytes
    moved = ", ".join(f"{bytes_moved(size, count) / MIB:.1f} MiB with {count}" for count in (2, 4, 16))
    run = benchmark.by_role("distributed")[0].name
    verdicts = [f"{row.speedup:.2f} over {row.baseline}" for row in speedup_table(benchmark) if row.run == run]
    largest = survey.sweep.samples[-1]
    return [
        (
            "optimizer.step() synchronises the gradients, and DDP sends the parameters around at every step",
            "DDP averages gradients in backward, and broadcasts parameters once, when it is constructed",
            "notebook 03, section 3.3: weights alike after DDP(model), gradients alike after backward",
        ),
        (
            "with more processes, each has less to send",
            "an all-reduce makes each process send 2(N-1)/N times the gradients: that nears twice and never falls",
            f"by the formula {moved} processes for {size / MIB:.1f} MiB of gradients; measured: "
            f"{largest.bytes / MIB:.0f} MiB among {survey.processes} took {1000 * np.mean(largest.seconds):.0f} ms",
        ),
        (
            "the time of the all-reduces is the overhead",
            "their sum counts what is hidden behind computing, and waiting; overhead is what lengthens the step",
            f"summed {1000 * summed:.1f} ms a step, exposed {1000 * found.value:.1f} ms "
            f"[{1000 * found.low:.1f}, {1000 * found.high:.1f}]",
        ),
        (
            "DDP is faster (or slower) than one process",
            "that depends on the baseline: with how many threads, or on what device",
            f"{run}: " + "; ".join(verdicts),
        ),
        (
            "multiply the learning rate by the number of processes",
            "only as far as the global batch grows: the same batch shared out keeps its rate",
            "notebook 03, section 3.5: one step of 2 processes with half the batch each is the step of 1 process",
        ),
    ]
