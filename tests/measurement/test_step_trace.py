"""The trace of a real step on three ranks, the last of them slowed by a known time."""

import json
from dataclasses import replace

import pytest
from helper_traces import bytes_of, require_valid, require_within_steps, spans

from ddp_workbook.analysis.trace import describe
from ddp_workbook.errors import InputError
from ddp_workbook.measurement import step_trace
from ddp_workbook.measurement.step_trace import FIGURE, PROFILE, TRACE, record_step
from ddp_workbook.recipes import RECIPES

CONFIG = replace(RECIPES["mlp-digits"], batch_size=48, device="cpu", precision="fp32")
RANKS, SLOW_MS = 3, 80
SLACK_MS = 25  # by which a loaded machine may be late


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The record, the folder, and the trace."""
    config = replace(CONFIG, results_dir=tmp_path_factory.mktemp("results"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_trace, "PAIRS", 2)
        breakdown, folder = record_step(config, RANKS, SLOW_MS, profiler=True)
    return breakdown, folder, json.loads((folder / TRACE).read_text())


def test_the_trace_of_all_ranks_is_valid_and_holds_the_whole_gradient(recorded):
    breakdown, folder, trace = recorded
    require_valid(trace)
    require_within_steps(trace, RANKS)
    assert {bytes_of(trace, process) for process in range(1, RANKS + 1)} == {4 * breakdown.parameters}
    assert min(each.marks[0] for each in breakdown.timelines) == 0
    assert (folder / FIGURE).stat().st_size > 10_000


def test_the_others_wait_for_a_slow_rank_as_long_as_it_sleeps(recorded):
    breakdown, _, trace = recorded
    for process in range(1, RANKS):
        waits = spans(trace, process, f"wait for rank {RANKS - 1}")
        assert len(waits) == len(breakdown.timeline.buckets)
        for _, start, end in waits:
            assert (end - start) / 1000 == pytest.approx(SLOW_MS, abs=SLACK_MS)
    assert not [
        event for event in trace["traceEvents"] if event["pid"] == RANKS and event["name"].startswith("wait for rank")
    ]
    first, *_, last = describe(breakdown).splitlines()
    assert first.endswith(f"of that waiting for rank {RANKS - 1}") and "waiting" not in last


def test_the_clocks_of_the_ranks_agree(recorded):
    """No all-reduce ends before the last rank has filled its bucket, whichever rank's clock says so."""
    timelines = recorded[0].timelines
    for buckets in zip(*(each.buckets for each in timelines), strict=True):
        assert min(bucket.done for bucket in buckets) > max(bucket.ready for bucket in buckets) - 0.005


def test_the_profiler_records_the_operators_of_every_rank(recorded):
    _, folder, _ = recorded
    for rank in range(RANKS):
        names = {event.get("name") for event in json.loads((folder / PROFILE.format(rank)).read_text())["traceEvents"]}
        assert {"aten::addmm", "gloo:all_reduce"} <= names


@pytest.mark.parametrize(
    ("processes", "slow_ms", "message"),
    [
        (1, 0, "--processes must be from 2 to"),
        (1000, 0, "--processes must be from 2 to"),
        (5, 0, "a batch of 48 cannot be split evenly among 5 processes"),
        (2, -1, "--slow-ms must be from 0 to"),
        (2, float("nan"), "--slow-ms must be from 0 to"),
    ],
)
def test_what_cannot_be_traced_is_refused(processes, slow_ms, message):
    with pytest.raises(InputError, match=message):
        record_step(CONFIG, processes, slow_ms, profiler=False)
