"""The trace of a step: valid by the rules of the Trace Event Format, and what the record says."""

import json
from itertools import pairwise

import pytest
from helper_records import make_breakdown
from helper_traces import bytes_of, require_valid, require_within_steps, spans

from ddp_workbook.analysis.trace import bucket_names, chrome_trace, describe, save_trace


def test_the_trace_is_valid_and_says_what_the_record_says(tmp_path):
    breakdown = make_breakdown()
    save_trace(breakdown, tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    require_valid(trace)
    require_within_steps(trace, ranks=2)
    assert trace == chrome_trace(breakdown)
    for process, timeline in enumerate(breakdown.timelines, start=1):
        marks = [round(1e6 * mark) for mark in timeline.marks]
        for name, part in zip(("waiting for data", "forward", "backward", "optimizer"), pairwise(marks), strict=True):
            assert spans(trace, process, name) == [(1, *part)]
        assert spans(trace, process, "all-reduce") == [
            (2 + row, round(1e6 * bucket.ready), round(1e6 * bucket.done))
            for row, bucket in enumerate(timeline.buckets)
        ]
        assert bytes_of(trace, process) == breakdown.gradient_bytes
    assert spans(trace, 1, "wait for rank 1") == [(2, 6000, 6500), (3, 10000, 10500)]
    assert not [e for e in trace["traceEvents"] if e["name"].startswith("wait for rank") and e["pid"] == 2]
    names = [e["args"]["name"] for e in trace["traceEvents"] if e["ph"] == "M" and e["pid"] == 1]
    assert names == ["rank 0", "computes", "bucket 1 (last layers)", "bucket 2 (first layers)"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda event: event.update(dur=-1),
        lambda event: event.update(ph="Z"),
        lambda event: event.update(ts=str(event["ts"])),
        lambda event: event.pop("tid"),
        lambda event: event.update(ts=event["ts"] + 1, dur=event["dur"] + 20_000),  # overlaps its step in part
    ],
)
def test_the_check_of_the_format_finds_what_is_wrong(spoil):
    trace = chrome_trace(make_breakdown())
    spoil(next(event for event in trace["traceEvents"] if event["name"] == "forward"))
    with pytest.raises((AssertionError, KeyError)):
        require_valid(trace)


def test_rounding_keeps_events_inside_those_that_contain_them():
    """Times that are no whole microseconds, and an all-reduce that ends with its step."""
    breakdown = make_breakdown()
    shifted = [
        each.model_copy(update={"marks": [mark + 4.9999e-7 * (row + 1) for row, mark in enumerate(each.marks)]})
        for each in breakdown.timelines
    ]
    require_valid(chrome_trace(breakdown.model_copy(update={"timelines": shifted})))


def test_a_record_with_one_timeline_has_one_process():
    breakdown = make_breakdown()
    trace = chrome_trace(breakdown.model_copy(update={"timelines": breakdown.timelines[:1]}))
    require_valid(trace)
    assert {event["pid"] for event in trace["traceEvents"]} == {1}


def test_each_rank_has_a_line():
    assert describe(make_breakdown()).splitlines() == [
        "rank 0: a step of 13 ms, 2.0 ms of it in all-reduces after its last gradient, 0.50 ms of that waiting for "
        "rank 1",
        "rank 1: a step of 12 ms, 1.4 ms of it in all-reduces after its last gradient",
    ]


def test_the_only_bucket_has_all_layers():
    assert bucket_names(1) == ["bucket 1 (all layers)"]
    assert bucket_names(3) == ["bucket 1 (last layers)", "bucket 2", "bucket 3 (first layers)"]
