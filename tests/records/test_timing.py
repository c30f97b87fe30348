"""Records of timings: written and read back, checked, and still read under the names that fields had before."""

import json

import pytest
from helper_records import make_benchmark, make_breakdown, make_sweep

from ddp_workbook.analysis.speedup import speedup_table
from ddp_workbook.analysis.tables import speedup_summaries
from ddp_workbook.errors import InputError
from ddp_workbook.records.files import load_record, save_record
from ddp_workbook.records.timing import BatchSweep, BenchmarkRecord, Interval, SpeedupSummary, StepBreakdown

RECORDS = [make_benchmark(), make_breakdown(), make_sweep()]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_is_read_as_it_was_written(tmp_path, record):
    save_record(record, tmp_path / "record.json")
    assert load_record(type(record), tmp_path / "record.json") == record


def rename(content, names):
    """Rename fields of nested dictionaries, each of which must occur."""
    found = set()

    def walk(inner):
        if isinstance(inner, list):
            return [walk(each) for each in inner]
        if not isinstance(inner, dict):
            return inner
        found.update(set(inner) & set(names))
        return {names.get(name, name): walk(value) for name, value in inner.items()}

    changed = walk(content)
    assert found == set(names)
    return changed


@pytest.mark.parametrize(
    ("record", "names"),
    [
        (make_benchmark(), {"configurations": "arrangements"}),
        (make_breakdown(), {"synced": "averaged", "no_sync": "alone"}),
        (make_sweep(), {"all_reduce": "sweep", "synced": "averaged", "no_sync": "alone"}),
    ],
    ids=["benchmark.json", "anatomy.json", "survey.json"],
)
def test_old_field_names_are_read(tmp_path, record, names):
    text = json.dumps(rename(json.loads(record.model_dump_json()), names))
    (tmp_path / "old.json").write_text(text.replace('"no-communication"', '"bound"'))
    assert load_record(type(record), tmp_path / "old.json") == record


def test_an_old_breakdown_has_the_timeline_of_rank_0_alone(tmp_path):
    record = make_breakdown()
    content = json.loads(record.model_dump_json())
    content["timeline"] = content.pop("timelines")[0]
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert load_record(StepBreakdown, tmp_path / "old.json").timelines == record.timelines[:1]


def test_the_old_name_of_the_upper_bound_is_written_no_more():
    content = json.loads(make_benchmark().model_dump_json())
    content["configurations"][2]["role"] = "bound"
    record = BenchmarkRecord.model_validate_json(json.dumps(content))
    assert [each.role for each in record.configurations] == ["serial", "serial", "no-communication", "distributed"]
    assert "bound" not in record.model_dump_json()


@pytest.mark.parametrize(
    ("schema", "record", "change", "field"),
    [
        (BenchmarkRecord, make_benchmark(), lambda r: r.pop("configurations"), "configurations"),
        (BenchmarkRecord, make_benchmark(), lambda r: r["configurations"][0].update(role="best"), "role"),
        (
            BenchmarkRecord, make_benchmark(), lambda r: r["configurations"][0]["images_per_second"].pop(),
            "images_per_second must have as many rounds in each configuration",
        ),
        (StepBreakdown, make_breakdown(), lambda r: r["timelines"][1]["marks"].pop(), "timelines.1.marks"),
        (StepBreakdown, make_breakdown(), lambda r: r.update(processes=3), "timelines must have 3 entries"),
        (
            StepBreakdown, make_breakdown(), lambda r: r["timelines"][1]["buckets"].pop(),
            "timelines must have the same buckets on every rank",
        ),
        (StepBreakdown, make_breakdown(), lambda r: r.update(processes=1), "processes"),
        (StepBreakdown, make_breakdown(), lambda r: r.pop("synced"), "synced"),
        (BatchSweep, make_sweep(), lambda r: r["points"][0].update(synced=[0.1]), "points.0.synced"),
        (BatchSweep, make_sweep(), lambda r: r["points"][0].update(together=[0.1, 0.1]), "points.0.together"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_record_that_does_not_fit_is_refused_by_field(tmp_path, schema, record, change, field):
    content = json.loads(record.model_dump_json())
    change(content)
    (tmp_path / "record.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=field):
        load_record(schema, tmp_path / "record.json")


@pytest.mark.parametrize(
    ("interval", "field"),
    [
        ({"value": 1.0, "low": 0.5}, "speedup.high"),
        ({"value": 1.0, "low": 0.5, "high": 2.0, "surprise": 1}, "speedup.surprise"),
        ({"value": float("nan"), "low": 0.5, "high": 2.0}, "speedup.value"),
        ({"value": 1.0, "low": 0.5, "high": float("inf")}, "speedup.high"),
    ],
)
def test_an_interval_in_a_record_is_checked_like_any_field(tmp_path, interval, field):
    [_, summary] = speedup_summaries(speedup_table(make_benchmark()))
    content = json.loads(summary.model_dump_json())
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(content))
    assert load_record(SpeedupSummary, path) == summary
    path.write_text(json.dumps(content | {"speedup": interval}))
    with pytest.raises(InputError, match=field):
        load_record(SpeedupSummary, path)


def test_an_interval_as_text():
    assert Interval(1.234, 1.0, 2.0).text(".2f") == "1.23 [1.00, 2.00]"
    assert Interval(0.0123, 0.01, 0.02).text(".1f", scale=1000) == "12.3 [10.0, 20.0]"


def test_points_of_a_model_come_by_batch_size():
    sweep = make_sweep()
    backwards = sweep.model_copy(update={"points": sweep.points[::-1]})
    assert [point.images for point in backwards.of_model("mlp")] == [8, 32, 128]
    assert backwards.models == ["resnet50", "mlp"]
