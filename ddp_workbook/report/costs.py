"""The report's numbers and verdicts about speed: speedups, the cost of gradient synchronization, the cost model."""

from __future__ import annotations

from ddp_workbook.analysis.break_even import read_map
from ddp_workbook.analysis.costmodel import Check, check_steps, fit_link
from ddp_workbook.analysis.speedup import (
    SpeedupRow,
    over_all_cores,
    speedup,
    speedup_table,
    upper_bound_shares,
    verdict,
)
from ddp_workbook.analysis.statistics import spread_words
from ddp_workbook.analysis.tables import claims_table
from ddp_workbook.analysis.words import read_breakdowns, read_model
from ddp_workbook.records.timing import BatchSweep, BenchmarkRecord, Interval
from ddp_workbook.report.inputs import Inputs
from ddp_workbook.specs import MODELS

HOOKS = {"allreduce": "ordinary all-reduce", "shared-memory": "shared memory"}


def costs_content(inputs: Inputs) -> dict:
    """What performance.typ prints, as text."""
    sweep, breakdown = inputs.sweep, inputs.breakdown
    link, checks = fit_link(sweep.all_reduce), check_steps(sweep)
    alone = link.all_reduce(breakdown.gradient_bytes, breakdown.processes, len(breakdown.timeline.buckets))
    return {
        "benchmark": _benchmark(inputs.benchmark),
        "weak": _weak(inputs.weak) if inputs.weak else None,
        "shared": inputs.shared is not None,
        "speedups": _speedups(inputs.benchmark) + (_speedups(inputs.weak) if inputs.weak else []),
        "read_breakdowns": read_breakdowns(inputs.breakdowns, alone),
        "read_model": read_model(checks),
        "latency_us": f"{1e6 * link.latency:.0f}",
        "bandwidth": f"{link.bandwidth / 1e9:.2f}",
        "sweep_rounds": _rounds(sweep),
        "map": _map(inputs),
        "other_map": ", ".join(inputs.other_map),
        "checks": [_check(check) for check in checks],
        "claims": claims_table(breakdown, sweep, inputs.benchmark),
    }


def _map(inputs: Inputs) -> str | None:
    """From which batch on it pays: the sentences about the recipe's own network; None without a map of this machine."""
    if inputs.batch_map is None or inputs.other_map:
        return None
    return read_map(inputs.batch_map, inputs.baseline.config.model)


def _benchmark(record: BenchmarkRecord) -> dict:
    bound, run = record.by_role("no-communication")[0], record.by_role("distributed")[0]
    serial = record.by_role("serial")
    return {
        "rounds": record.rounds,
        "steps": record.steps,
        "new_processes": record.new_processes,
        "spread": spread(record),
        "interval": spread_words(record.rounds),
        "upper_bound": upper_bound_shares(record)[run.name].text(".2f"),
        "first": _named(serial[0].name),
        "last": _named(serial[-1].name),
        "bound_over_first": speedup(bound.images_per_second, serial[0].images_per_second).text(".2f"),
        "against": _against(record, "times as fast as"),
        "verdicts": [_clause(row) for row in speedup_table(record)],
    }


def _weak(record: BenchmarkRecord) -> dict:
    run = record.by_role("distributed")[0]
    return {
        "rounds": record.rounds,
        "hook": HOOKS.get(record.config.comm_hook, record.config.comm_hook),
        "batch_each": run.batch_size,
        "global_batch": run.global_batch,
        "against": _against(record, "times as many images/s as"),
        "same_hook": record.config.comm_hook == "allreduce",
        "conclusion": _gain(record),
    }


def _gain(record: BenchmarkRecord) -> str:
    """What weak scaling shows against one process on all cores; with another hook two things differ from above."""
    ratio = over_all_cores(record)[0][1]
    if ratio.low > 1:
        shown = "So DDP computes more images per second than one process on all cores."
    elif ratio.high < 1:
        shown = "Even so, one process on all cores computes more images per second."
    else:
        shown = "A gain over one process on all cores is not shown."
    if record.config.comm_hook == "allreduce":  # only the batch differs
        return shown
    return f"{shown} These data do not say how much of it each of the two changes brings."


def _against(record: BenchmarkRecord, words: str) -> list[str]:
    return [f"{row.speedup.text('.2f')} {words} {_named(row.baseline)}" for row in speedup_table(record)]


def _speedups(record: BenchmarkRecord) -> list[list[str]]:
    """Rows of the table of speedups."""
    hook = HOOKS.get(record.config.comm_hook, record.config.comm_hook)
    return [
        [f"{record.scaling}, {hook}", row.baseline, row.speedup.text(".2f"), f"{100 * row.efficiency.value:.0f} %",
         verdict(row.speedup)]
        for row in speedup_table(record)
    ]  # fmt: skip


def _named(configuration: str) -> str:
    """A configuration's name without its comma, to stand in a sentence."""
    return configuration.replace(", ", " with ", 1)


def _clause(row: SpeedupRow) -> str:
    """The verdict on one speedup, to stand in a sentence."""
    word, _, edge = verdict(row.speedup).partition(",")
    relation = "not distinguishable in speed from" if word.startswith("not") else f"{word} than"
    return f"{relation} {_named(row.baseline)} ({row.speedup.text('.2f')}{';' + edge if edge else ''})"


def _rounds(sweep: BatchSweep) -> str:
    """How many rounds the points of the sweep have: it stops early where an interval is narrow."""
    counts = [len(point.serial) for point in sweep.points]
    return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _check(check: Check) -> list[str]:
    """A row of the table of predicted and measured steps; times in milliseconds, errors in percent."""
    return [
        MODELS[check.model].label,
        str(check.images),
        _milliseconds(check.all_reduce),
        _interval(check.added),
        _interval(check.measured),
        _error(check.error),
        _error(check.corrected_error),
    ]


def _error(share: Interval) -> str:
    value, low, high = (round(100 * each) for each in (share.value, share.low, share.high))
    return f"{value:+d} [{low:+d}, {high:+d}]"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.{_digits(seconds)}f}"


def _interval(seconds: Interval) -> str:
    return seconds.text(f".{_digits(seconds.value)}f", scale=1000)


def _digits(seconds: float) -> int:
    """Decimals of a time in milliseconds: none from 100 ms on."""
    return 0 if seconds >= 0.1 else 1


def spread(benchmark: BenchmarkRecord) -> str:
    """The widest range of rates that a configuration showed over the rounds."""
    widest = max(benchmark.configurations, key=lambda c: max(c.images_per_second) / max(min(c.images_per_second), 1e-9))
    low, high = min(widest.images_per_second), max(widest.images_per_second)
    return f"the throughput of {_named(widest.name)} was between {low:.0f} and {high:.0f} images/s"
