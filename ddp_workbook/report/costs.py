"""The report's sections on communication and cost: their figures and what they print."""

from __future__ import annotations

import statistics
from pathlib import Path

from ddp_workbook import plots, plots_cost
from ddp_workbook.costmodel import check_steps, exposed, fit_link, slowest
from ddp_workbook.scaling import over_all_cores
from ddp_workbook.timings import AnatomyRecord, BenchmarkRecord, SurveyRecord


def draw_costs(root: Path, anatomy: AnatomyRecord, survey: SurveyRecord, benchmark: BenchmarkRecord) -> None:
    """Write their figures as SVG into `root`."""
    batch = benchmark.by_role("serial")[0].global_batch
    figures = {
        "anatomy": plots_cost.step_anatomy(anatomy),
        "timeline": plots_cost.timeline(anatomy.timeline, f"One step of {anatomy.recipe} on rank 0"),
        "all_reduce": plots_cost.all_reduce_fit(survey.sweep),
        "pay_map": plots_cost.pay_map(survey),
        "predicted": plots_cost.predicted_here(survey, batch, over_all_cores(benchmark)),
    }
    for name, figure in figures.items():
        (root / f"{name}.svg").write_bytes(plots.to_svg(figure))


def costs_content(anatomy: AnatomyRecord, survey: SurveyRecord) -> dict:
    """What the sections on communication print."""
    found, link, checks = exposed(anatomy), fit_link(survey.sweep), check_steps(survey)
    errors = [abs(check.error) for check in checks]
    summed = statistics.median(step.collectives for rank in anatomy.averaged for step in rank)
    step = statistics.median(slowest(anatomy.alone))
    return {
        "step_ms": f"{1000 * step:.1f}",
        "exposed_ms": f"{1000 * found.value:.1f}",
        "exposed_interval": f"{1000 * found.low:.1f} to {1000 * found.high:.1f}",
        "summed_ms": f"{1000 * summed:.1f}",
        "buckets": len(anatomy.timeline.buckets),
        "latency_us": f"{1e6 * link.latency:.0f}",
        "bandwidth": f"{link.bandwidth / 1e9:.2f}",
        "median_error": f"{100 * statistics.median(errors):.1f} %",
        "largest_error": f"{100 * max(errors):.1f} %",
        "checks": [
            [
                plots_cost.MODEL_NAMES[check.model],
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
