"""Records of runs: written and read back, refused by name when they do not fit, and still read when they are old."""

import base64
import json
from pathlib import Path

import pytest
from conftest import ROOT
from helper_records import make_run
from hypothesis import given
from hypothesis import strategies as st

from ddp_workbook.config import PATHS, first_difference
from ddp_workbook.errors import InputError
from ddp_workbook.recipes import RECIPES
from ddp_workbook.records.batch_map import BatchMap
from ddp_workbook.records.course import CourseSummary, NotebookTimes
from ddp_workbook.records.files import load_record, save_record
from ddp_workbook.records.run import HistoryRecord, RunRecord, load_run, pack_bits, record_paths, unpack_bits
from ddp_workbook.records.seeds import SeedStudy
from ddp_workbook.records.timing import BatchSweep, BenchmarkRecord, PerformanceMetrics, StepBreakdown


def save_run_files(folder, kind="baseline"):
    run, history = make_run(kind)
    metrics, epochs = record_paths(folder, kind)
    save_record(run, metrics)
    save_record(history, epochs)
    return run, history


def test_a_run_is_read_as_it_was_written(tmp_path):
    assert save_run_files(tmp_path) == load_run(tmp_path, "baseline")


def test_missing_results_are_named(tmp_path):
    with pytest.raises(InputError, match=r"baseline_metrics.json does not exist; the run that writes it"):
        load_run(tmp_path, "baseline")


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda r: r.pop("parameters"), "parameters"),
        (lambda r: r.update(surprise=1), "surprise"),
        (lambda r: r.update(schema_version=2), "schema_version"),
        (lambda r: r.update(train_seconds=-1), "train_seconds"),
        (lambda r: r.update(train_seconds="fast"), "train_seconds"),
        (lambda r: r["environment"].pop("cpu"), "environment.cpu"),
        (lambda r: r["config"].update(surprise=1), "config.surprise"),
        (lambda r: r["config"].update(batch_size="many"), "config.batch_size"),
        (lambda r: r["dataset"].update(fingerprint="zz"), "dataset.fingerprint"),
        (lambda r: r.update(kind="other"), "kind"),
        (lambda r: r.update(test_accuracy=0.5), "test_accuracy does not follow from confusion"),
        (lambda r: r["confusion"].pop(), "confusion must be 2 x 2"),
        (lambda r: r["confusion"][0].__setitem__(0, 5), "confusion counts"),
        (lambda r: r["peak_memory_bytes"].append(1), "peak_memory_bytes must have 1 entries"),
        (lambda r: r["world"].update(batch_sizes=[32, 32]), "world.batch_sizes must have one entry per process"),
        (lambda r: r["world"].update(batch_sizes=[63]), "together the global batch"),
        (lambda r: r["world"].update(batch_sizes=[0]), "world.batch_sizes"),
        (lambda r: r["world"].update(batch_sizes=[64]), "config.balance is 'equal'"),
        (lambda r: r["config"].update(balance="auto"), "world.batch_sizes is None, but config.balance is 'auto'"),
        (lambda r: r.update(rank_bytes=[]), "rank_bytes must have 1 entries"),
        (lambda r: r.update(correct_images="no bits"), "correct_images is not base64"),
        (lambda r: r.update(correct_images="/ä=="), "correct_images is not base64"),
        (lambda r: r.update(correct_images=pack_bits([True] * 180)), "a bit for each of the 200 test images"),
        (lambda r: r.update(correct_images=pack_bits([True] * 180 + [False] * 28)), "a bit for each of the 200"),
        (lambda r: r.update(correct_images=pack_bits([True] * 181 + [False] * 19)), "as many correct predictions"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_by_field(tmp_path, change, field):
    save_run_files(tmp_path)
    path = record_paths(tmp_path, "baseline")[0]
    edit(path, change)
    with pytest.raises(InputError) as refusal:
        load_run(tmp_path, "baseline")
    assert field in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_a_bad_setting_inside_a_record_is_refused(tmp_path):
    save_run_files(tmp_path)
    edit(record_paths(tmp_path, "baseline")[0], lambda r: r["config"].update(batch_size=0))
    with pytest.raises(InputError, match="--batch-size must be at least 1"):
        load_run(tmp_path, "baseline")


def test_the_history_of_another_run_is_refused(tmp_path):
    save_run_files(tmp_path)
    edit(record_paths(tmp_path, "baseline")[1], lambda h: h["epochs"].pop())
    with pytest.raises(InputError, match="belongs to another run"):
        load_run(tmp_path, "baseline")


def test_the_files_of_the_other_kind_are_refused(tmp_path):
    save_run_files(tmp_path, "distributed")
    for source, target in zip(record_paths(tmp_path, "distributed"), record_paths(tmp_path, "baseline"), strict=True):
        source.rename(target)
    with pytest.raises(InputError, match="kind: is 'distributed', expected 'baseline'"):
        load_run(tmp_path, "baseline")


@given(st.data())
def test_a_truncated_record_is_never_read(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("truncated")
    save_run_files(folder)
    path = record_paths(folder, "baseline")[0]
    complete = path.read_bytes()
    path.write_bytes(complete[: data.draw(st.integers(0, len(complete) - 3))])
    with pytest.raises(InputError):
        load_run(folder, "baseline")


@given(st.lists(st.booleans(), max_size=40))
def test_bits_are_unpacked_as_they_were_packed(bits):
    assert unpack_bits(pack_bits(bits), len(bits)) == bits


def test_bits_are_packed_as_numpy_packs_them():
    assert base64.b64decode(pack_bits([True, False, False, False, False, False, False, True, True])) == b"\x81\x80"
    with pytest.raises(ValueError, match="a bit for each of the 3 test images"):
        unpack_bits(pack_bits([True] * 4), 3)  # the fourth bit must be padding


# Records of earlier versions


def test_a_record_without_correct_images_is_read(tmp_path):
    save_run_files(tmp_path)
    edit(record_paths(tmp_path, "baseline")[0], lambda r: r.pop("correct_images"))
    assert load_run(tmp_path, "baseline")[0].correct_bits is None


def with_old_fields(record):
    """Rename the configuration's fields to what they were called before; no record may have both names."""
    config = record["config"]
    del config["balance"]
    for new, old in (
        ("grad_accum_steps", "accumulate"), ("base_batch_size", "lr_batch"), ("head_lr_scale", "head_lr"),
    ):  # fmt: skip
        config[old] = config.pop(new)
    del config["comm_hook"]
    config |= {"averaging": "all-reduce", "gradient_compression": "none"}


def load_old_config(folder, change):
    """The configuration in a record of an earlier version, after a change of its fields."""
    save_run_files(folder)
    path = record_paths(folder, "baseline")[0]
    edit(path, with_old_fields)
    edit(path, lambda record: change(record["config"]))
    return load_record(RunRecord, path).config


def test_an_old_configuration_is_read_with_todays_names(tmp_path):
    changes = {"accumulate": 4, "batch_size": 16, "lr_batch": 96, "head_lr": 0.25}
    config = load_old_config(tmp_path, lambda old: old.update(changes))
    assert (config.grad_accum_steps, config.base_batch_size, config.head_lr_scale) == (4, 96, 0.25)
    rest = PATHS | {"grad_accum_steps", "batch_size", "base_batch_size", "head_lr_scale"}
    assert first_difference(config, make_run()[0].config, rest) is None


# today's hook by averaging and gradient_compression; None where the file had no averaging, or no run could do both
HOOKS = {
    ("all-reduce", "none"): "allreduce", ("all-reduce", "bf16"): "bf16", ("all-reduce", "fp16"): "fp16",
    ("all-reduce", "powersgd"): "powersgd",
    ("shared-memory", "none"): "shared-memory", ("shared-memory", "bf16"): None, ("shared-memory", "fp16"): None,
    ("shared-memory", "powersgd"): None,
    (None, "none"): "allreduce", (None, "bf16"): "bf16", (None, "fp16"): "fp16", (None, "powersgd"): "powersgd",
}  # fmt: skip


@pytest.mark.parametrize(("averaging", "compression"), HOOKS)
def test_averaging_and_compression_are_todays_hook(tmp_path, averaging, compression):
    def change(old):
        old.update(averaging=averaging, gradient_compression=compression)
        if averaging is None:
            del old["averaging"]

    hook = HOOKS[averaging, compression]
    if hook:
        assert load_old_config(tmp_path, change).comm_hook == hook
    else:
        with pytest.raises(InputError, match=r"config: .*gradient_compression must be none"):
            load_old_config(tmp_path, change)


@pytest.mark.parametrize("averaging", ["by hand", ["all-reduce"], 3])
@pytest.mark.parametrize("compression", ["none", "bf16"])
def test_an_averaging_that_never_existed_is_refused(tmp_path, averaging, compression):
    with pytest.raises(InputError, match="config"):
        load_old_config(tmp_path, lambda old: old.update(averaging=averaging, gradient_compression=compression))


@pytest.mark.parametrize(
    ("old", "today"),
    [
        ("head_lr", "head_lr_scale"),
        ("accumulate", "grad_accum_steps"),
        ("gradient_compression", "comm_hook"),
        ("seed", "seed"),
    ],
)
def test_a_record_without_a_field_is_refused(tmp_path, old, today):
    """Today's default in place of a missing field could say what the run never did."""
    with pytest.raises(InputError, match=rf"config: .*{today} is missing"):
        load_old_config(tmp_path, lambda config: config.pop(old))


# what lies in bench/ itself is read by the scripts that wrote it and by nothing else
REFERENCES = sorted(p for p in (ROOT / "results" / "reference").glob("**/*.json") if p.parent.name != "bench")
SCHEMAS = {
    "baseline_metrics": RunRecord, "distributed_metrics": RunRecord, "baseline_history": HistoryRecord,
    "distributed_history": HistoryRecord, "benchmark": BenchmarkRecord, "step_breakdown": StepBreakdown,
    "benchmark_weak": BenchmarkRecord, "step_breakdown_shared_memory": StepBreakdown,
    "anatomy": StepBreakdown, "batch_sweep": BatchSweep, "survey": BatchSweep, "notebook_times": NotebookTimes,
    "test_summary": CourseSummary, "performance_metrics": PerformanceMetrics, "serial_results": BenchmarkRecord,
    "parallel_2p_results": BenchmarkRecord, "parallel_4p_results": BenchmarkRecord,
    "parallel_8p_results": BenchmarkRecord, "batch_map": BatchMap, "seeds": SeedStudy,
}  # fmt: skip


@pytest.mark.parametrize("path", REFERENCES, ids=[f"{path.parent.name}/{path.name}" for path in REFERENCES])
def test_every_reference_fits_todays_schema(path: Path):
    load_record(SCHEMAS[path.stem], path)


def test_references_hold_todays_recipes():
    """A recipe that was changed since its reference run would be compared with something else."""
    paths = list((ROOT / "results" / "reference").glob("*/baseline_metrics.json"))
    assert paths
    for path in paths:
        run = load_record(RunRecord, path)
        difference = first_difference(run.config, RECIPES[run.recipe], PATHS | {"device", "batch_size"})
        assert difference is None, f"{path}: {difference}"
