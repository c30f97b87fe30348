"""A measured step of all ranks as a Chrome trace, which ui.perfetto.dev and chrome://tracing open.

The format is the JSON of Google's "Trace Event Format"
(docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU): complete events, in microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from ddp_workbook.analysis.words import milliseconds
from ddp_workbook.records.files import save_text
from ddp_workbook.records.timing import StepBreakdown, Timeline

PARTS = ("waiting for data", "forward", "backward", "optimizer")


def chrome_trace(breakdown: StepBreakdown) -> dict:
    """The trace: a process for each rank. Its first thread computes, and each bucket has one more, as they overlap.

    An all-reduce cannot end before the last rank has filled the bucket: until then, the others wait for that rank.
    """
    events: list[dict] = []
    for rank, timeline in enumerate(breakdown.timelines):
        process = rank + 1  # 0 is the idle process in viewers of system traces
        events.append(_named("process", f"rank {rank}", process, 1))
        events += [_named("thread", name, process, 1 + row) for row, name in enumerate(_rows(timeline))]
        events += [_event(*span, process) for span in _spans(breakdown.timelines, rank)]
    about = {"recipe": breakdown.recipe, "gradient_bytes": breakdown.gradient_bytes, "precision": breakdown.precision}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}


def describe(breakdown: StepBreakdown) -> str:
    """A line for each rank: its step, and how long its all-reduces last after its last gradient."""
    lines, (slowest, filled) = [], last_to_fill(breakdown.timelines, -1)
    for rank, each in enumerate(breakdown.timelines):
        ready, done = each.buckets[-1].ready, max(bucket.done for bucket in each.buckets)
        line = f"rank {rank}: a step of {milliseconds(each.marks[-1] - each.marks[0])}"
        line += f", {milliseconds(done - ready)} of it in all-reduces after its last gradient"
        waits = f", {milliseconds(filled - ready)} of that waiting for rank {slowest}"
        lines.append(line if rank == slowest else line + waits)
    return "\n".join(lines)


def save_trace(breakdown: StepBreakdown, path: Path) -> None:
    """Write chrome_trace() as JSON, atomically."""
    save_text(json.dumps(chrome_trace(breakdown)), path)


def last_to_fill(timelines: Sequence[Timeline], bucket: int) -> tuple[int, float]:
    """The rank that filled this bucket last, and when."""
    ready = [each.buckets[bucket].ready for each in timelines]
    return ready.index(max(ready)), max(ready)


def bucket_names(count: int) -> list[str]:
    """Buckets in the order in which backward fills them: it begins at the network's last layers."""
    if count == 1:
        return ["bucket 1 (all layers)"]
    ends = {1: " (last layers)", count: " (first layers)"}
    return [f"bucket {number}{ends.get(number, '')}" for number in range(1, count + 1)]


def _rows(timeline: Timeline) -> list[str]:
    return ["computes", *bucket_names(len(timeline.buckets))]


def _spans(timelines: Sequence[Timeline], rank: int) -> Iterator[tuple]:
    """(row, name, start, end, arguments) of this rank; what contains another span comes before it."""
    marks, buckets = timelines[rank].marks, timelines[rank].buckets
    yield 0, "step", marks[0], marks[-1], {}
    for name, (start, end) in zip(PARTS, pairwise(marks), strict=True):
        yield 0, name, start, end, {}
    for number, bucket in enumerate(buckets):
        yield 1 + number, "all-reduce", bucket.ready, bucket.done, {"bytes": bucket.bytes}
        slowest, filled = last_to_fill(timelines, number)
        if slowest != rank:
            yield 1 + number, f"wait for rank {slowest}", bucket.ready, min(filled, bucket.done), {}


def _event(row: int, name: str, start: float, end: float, arguments: dict, process: int) -> dict:
    """Whole microseconds: rounded so, what lies within another span does so to the last digit."""
    first, last = round(1e6 * start), round(1e6 * end)
    times = {"ts": first, "dur": last - first}
    return {"name": name, "cat": "step", "ph": "X", **times, "pid": process, "tid": 1 + row, "args": arguments}


def _named(what: str, name: str, process: int, thread: int) -> dict:
    return {"name": f"{what}_name", "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}
