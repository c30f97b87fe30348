"""The report's sections on communication and cost: their figures and numbers."""

from __future__ import annotations

import statistics

from matplotlib.figure import Figure

from ddp_workbook.analysis import plots_cost
from ddp_workbook.analysis.costmodel import check_steps, exposed, fit_link, slowest, summed_collectives
from ddp_workbook.analysis.speedup import over_all_cores
from ddp_workbook.records.timing import BatchSweep, BenchmarkRecord, StepBreakdown
from ddp_workbook.specs import MODELS


def cost_figures(breakdown: StepBreakdown, sweep: BatchSweep, benchmark: BenchmarkRecord) -> dict[str, Figure]:
    """The figures, by name."""
    batch = benchmark.by_role("serial")[0].global_batch
    return {
        "breakdown": plots_cost.step_breakdown(breakdown),
        "timeline": plots_cost.timeline(breakdown.timeline, f"One step of {breakdown.recipe} on rank 0"),
        "all_reduce": plots_cost.all_reduce_fit(sweep.all_reduce),
        "pay_map": plots_cost.pay_map(sweep),
        "predicted": plots_cost.predicted_here(sweep, batch, over_all_cores(benchmark)),
    }


def costs_content(breakdown: StepBreakdown, sweep: BatchSweep) -> dict:
    """The numbers, as text."""
    overhead, link, checks = exposed(breakdown), fit_link(sweep.all_reduce), check_steps(sweep)
    errors = [abs(check.error) for check in checks]
    step = statistics.median(slowest(breakdown.no_sync))
    return {
        "step_ms": f"{1000 * step:.1f}",
        "exposed_ms": f"{1000 * overhead.value:.1f}",
        "exposed_interval": f"{1000 * overhead.low:.1f} to {1000 * overhead.high:.1f}",
        "summed_ms": f"{1000 * summed_collectives(breakdown):.1f}",
        "buckets": len(breakdown.timeline.buckets),
        "latency_us": f"{1e6 * link.latency:.0f}",
        "bandwidth": f"{link.bandwidth / 1e9:.2f}",
        "median_error": f"{100 * statistics.median(errors):.1f} %",
        "largest_error": f"{100 * max(errors):.1f} %",
        "checks": [
            [
                MODELS[check.model].label,
                str(check.images),
                f"{1000 * check.predicted:.2f}",
                f"{1000 * check.measured.value:.2f}",
                f"{1000 * check.measured.low:.2f} to {1000 * check.measured.high:.2f}",
                f"{100 * check.error:+.1f} %",
                f"{1000 * check.all_reduce:.2f}",
                f"{1000 * check.added:.2f}",
            ]
            for check in checks
        ],
    }
