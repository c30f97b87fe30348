"""Records and checkpoints: whole or not at all, and refused by name when they do not fit."""

import json
import os
import pickle
from dataclasses import fields

import pytest
import torch
from conftest import ROOT, make_benchmark, make_run
from ddp_workbook.checkpoint import TrainingState, checkpoint_path, load_checkpoint, load_weights, save_checkpoint
from ddp_workbook.engine import build_optimizer, build_schedule
from ddp_workbook.files import load_record, save_record, save_text, write_whole
from ddp_workbook.record import CourseSummary, HistoryRecord, NotebookTimes, RunRecord, load_run, record_paths
from ddp_workbook.results import check_writable, finished_run, run_kind
from ddp_workbook.timings import AnatomyRecord, BenchmarkRecord, PerformanceMetrics, SurveyRecord
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ddp_workbook.devices import Arithmetic, choose_device
from ddp_workbook.distributed import World
from ddp_workbook.errors import InputError
from ddp_workbook.recipes import RECIPES


def save_run_files(folder, kind="baseline"):
    run, history = make_run(kind)
    metrics, epochs = record_paths(folder, kind)
    save_record(run, metrics)
    save_record(history, epochs)
    return run, history


def test_there_and_back(tmp_path):
    assert save_run_files(tmp_path) == load_run(tmp_path, "baseline")
    save_record(make_benchmark(), tmp_path / "b.json")
    assert load_record(BenchmarkRecord, tmp_path / "b.json") == make_benchmark()


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


@given(st.data())
def test_a_torn_record_is_never_read(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("torn")
    save_run_files(folder)
    path = record_paths(folder, "baseline")[0]
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 3))])
    with pytest.raises(InputError):
        load_run(folder, "baseline")


def test_writing_that_fails_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "file"
    save_text("earlier", path)

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left on device"):
        write_whole(path, fail)
    assert path.read_text() == "earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path, config):
    (tmp_path / "results").write_text("a file in the way")
    with pytest.raises(InputError, match="choose a writable folder"):
        check_writable(config)
    with pytest.raises(InputError, match="choose a writable folder"):
        save_text("x", tmp_path / "results" / "file")


@pytest.mark.skipif(os.name != "posix", reason="umask is POSIX")
def test_results_get_the_users_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        save_text("x", tmp_path / "file")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_run_kinds():
    assert run_kind(World()) == "baseline"
    assert run_kind(World(0, 1, 0, 1, launched=True)) == "distributed"


@pytest.fixture
def saved(config):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, config, 1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    schedule = build_schedule(optimizer, config, 5)
    state = TrainingState(model, optimizer, schedule, Arithmetic(torch.device("cpu"), "fp32"), epoch=1)
    path = checkpoint_path(config, "baseline")
    save_checkpoint(path, state, config, "baseline")
    return path, state


def test_a_checkpoint_has_all_that_training_changes(saved, config):
    path, state = saved
    content, its_config = load_checkpoint(path)
    assert torch.equal(content["random_state"], torch.get_rng_state())
    assert path.name == "baseline_resnet50_digits.pth"
    assert its_config == config
    assert content["epoch"] == 1
    fresh = nn.Linear(3, 2)
    load_weights(fresh, content, path)
    assert torch.equal(fresh.weight, state.model.weight)
    momentum = content["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, state.optimizer.state_dict()["state"][0]["momentum_buffer"])
    assert content["schedule"]["last_epoch"] == 0


def test_weights_of_another_network_are_refused(saved):
    path, _ = saved
    with pytest.raises(InputError, match="another network"):
        load_weights(nn.Linear(4, 2), load_checkpoint(path)[0], path)


@given(st.data())
def test_a_cut_checkpoint_is_never_loaded(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "cut.pth"
    torch.save({"a": torch.ones(100)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(InputError, match="torn or not a checkpoint"):
        load_checkpoint(path)


class Trap:
    def __reduce__(self):
        return os.system, ("echo trapped > trap.txt",)


def test_a_foreign_checkpoint_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Trap()}, "trap.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Trap()))
    for name in ("trap.pth", "raw.pth"):
        with pytest.raises(InputError, match="torn or not a checkpoint"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "trap.txt").exists()


@pytest.mark.parametrize("content", [{"model": {}}, [1, 2], torch.ones(3)])
def test_other_content_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(InputError, match="not a checkpoint of this workbook"):
        load_checkpoint(tmp_path / "other.pth")


def test_a_finished_run_is_found_again_only_with_its_settings(tmp_path, config):
    from dataclasses import replace

    run, _ = make_run()
    mine = replace(run.config, results_dir=tmp_path, checkpoint_dir=tmp_path)
    assert finished_run(mine, "baseline", 1) is None
    save_run_files(mine.run_dir)
    assert finished_run(mine, "baseline", 1) is None  # its checkpoint is missing
    checkpoint_path(mine, "baseline").write_bytes(b"")
    found = finished_run(mine, "baseline", 1)
    assert found is not None
    assert (isinstance(found[0], RunRecord), isinstance(found[1], HistoryRecord)) == (True, True)
    on_this_device = choose_device("auto").type == run.environment.device
    assert (finished_run(replace(mine, device="auto"), "baseline", 1) is not None) == on_this_device
    assert finished_run(mine, "baseline", 2) is None
    assert finished_run(replace(mine, lr=1.0), "baseline", 1) is None


def test_a_record_of_an_older_configuration_is_refused(tmp_path):
    """Today's default in place of a missing field could say what the run never did."""
    save_run_files(tmp_path)
    path = record_paths(tmp_path, "baseline")[0]
    content = json.loads(path.read_text())
    del content["config"]["head_lr"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"config: .*head_lr is missing"):
        load_record(RunRecord, path)


def test_a_field_that_came_later_is_read_as_what_all_runs_did(tmp_path):
    save_run_files(tmp_path)
    path = record_paths(tmp_path, "baseline")[0]
    content = json.loads(path.read_text())
    del content["config"]["averaging"]
    path.write_text(json.dumps(content))
    assert load_record(RunRecord, path).config.averaging == "all-reduce"


# what lies in bench/ itself is read by the scripts that wrote it and by nothing else
REFERENCES = sorted(p for p in (ROOT / "results" / "reference").glob("**/*.json") if p.parent.name != "bench")
SCHEMAS = {
    "baseline_metrics": RunRecord, "distributed_metrics": RunRecord, "baseline_history": HistoryRecord,
    "distributed_history": HistoryRecord, "benchmark": BenchmarkRecord, "anatomy": AnatomyRecord,
    "survey": SurveyRecord, "notebook_times": NotebookTimes, "test_summary": CourseSummary,
    "performance_metrics": PerformanceMetrics, "serial_results": BenchmarkRecord,
    "parallel_2p_results": BenchmarkRecord, "parallel_4p_results": BenchmarkRecord,
    "parallel_8p_results": BenchmarkRecord,
}  # fmt: skip


@pytest.mark.parametrize("path", REFERENCES, ids=[f"{path.parent.name}/{path.name}" for path in REFERENCES])
def test_every_reference_fits_todays_schema(path):
    load_record(SCHEMAS[path.stem], path)


def test_references_hold_todays_recipes():
    """A recipe that was changed since its reference run would be compared with something else."""
    for path in (ROOT / "results" / "reference").glob("*/baseline_metrics.json"):
        run = load_record(RunRecord, path)
        recipe = RECIPES[run.recipe]
        same = ("data_dir", "results_dir", "checkpoint_dir", "device", "batch_size")
        for field in fields(recipe):
            if field.name not in same:
                assert getattr(run.config, field.name) == getattr(recipe, field.name), f"{path}: {field.name}"
