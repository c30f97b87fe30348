"""A finished run is this run only if its images are those that are there now."""

from dataclasses import replace

import pytest
from PIL import Image

import distributed_train
from ddp_workbook.config import CheckpointOptions, TrainConfig
from ddp_workbook.distributed.process_group import World
from ddp_workbook.records.run import load_run
from ddp_workbook.runs import outputs
from ddp_workbook.runs.outputs import finished_run

SERIAL, RESUME = World(), CheckpointOptions(resume=True)


def save_images(folder, red, names="ab"):
    for part in ("train", "test"):
        for name in names:
            (folder / part / name).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (32, 32), (red, number, ord(names[0]))).save(folder / part / name / f"{number}.png")
    return folder


@pytest.fixture
def finished(tmp_path):
    """The configuration of a finished run on an image folder."""
    config = TrainConfig(
        model="mlp", dataset="imagefolder", data_dir=save_images(tmp_path / "first", red=1), device="cpu",
        results_dir=tmp_path / "results", checkpoint_dir=tmp_path / "checkpoints", epochs=1, batch_size=4,
    )  # fmt: skip
    assert distributed_train.run(config, CheckpointOptions(), SERIAL)
    return config


def test_resume_trains_on_other_images_and_says_so(finished, tmp_path, capsys):
    """In another folder or in the same one, as in notebook 02."""
    other = replace(finished, data_dir=save_images(tmp_path / "other", red=200))
    assert not distributed_train.run(finished, RESUME, SERIAL)
    earlier, _ = load_run(finished.run_dir, "baseline")
    capsys.readouterr()
    assert distributed_train.run(other, RESUME, SERIAL)
    out = capsys.readouterr().out
    assert f"this run replaces that of {earlier.finished_at}" in out
    assert "this run finished" not in out
    now, _ = load_run(finished.run_dir, "baseline")
    assert now.dataset.fingerprint != earlier.dataset.fingerprint
    other.data_dir.rename(tmp_path / "moved")
    finished.data_dir.rename(other.data_dir)
    assert distributed_train.run(other, RESUME, SERIAL)


def test_a_finished_run_is_found_by_its_images(finished, tmp_path):
    """As notebook 03 asks, which has not loaded them."""
    assert finished_run(finished, "baseline", 1) == load_run(finished.run_dir, "baseline")
    copy = replace(finished, data_dir=save_images(tmp_path / "copy", red=1))
    assert finished_run(copy, "baseline", 1)
    for name, changes in {"other pixels": {"red": 2}, "another class": {"red": 1, "names": "ac"}}.items():
        other = replace(finished, data_dir=save_images(tmp_path / name, **changes))
        assert finished_run(other, "baseline", 1) is None, name


def test_images_are_loaded_only_where_everything_else_fits(finished, monkeypatch):
    loads = []
    monkeypatch.setattr(outputs, "load_dataset", lambda config: loads.append(config))
    assert finished_run(replace(finished, lr=0.5), "baseline", 1) is None
    assert finished_run(finished, "baseline", 2) is None
    assert finished_run(finished, "distributed", 1) is None
    assert not loads
