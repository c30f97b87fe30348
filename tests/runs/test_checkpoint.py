"""The checkpoint file: complete, recognized when it is corrupt, and never a program."""

import hashlib
import os
import pickle

import pytest
import torch
from helper_interrupted_runs import seal
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ddp_workbook.config import TrainConfig
from ddp_workbook.errors import InputError
from ddp_workbook.runs.checkpoint import (
    SEAL_BYTES,
    TRAINING_FIELDS,
    load_weights,
    model_path,
    read_checkpoint,
    read_seal,
    write_checkpoint,
)


@pytest.fixture
def saved(config):
    """The file of a finished model, and the model."""
    torch.manual_seed(0)
    model, path = nn.Linear(3, 2), model_path(config, "baseline")
    write_checkpoint(path, config, "0" * 64, model.state_dict())
    return path, model


def test_a_finished_model_comes_back_with_its_configuration(saved, config):
    path, model = saved
    content = read_checkpoint(path)
    assert path.name == "baseline_resnet50_digits.pth"
    assert content["config"] == config
    assert content["fingerprint"] == "0" * 64
    assert content["training"] is None
    other = nn.Linear(3, 2)
    load_weights(other, content, path)
    assert torch.equal(other.weight, model.weight)
    assert torch.equal(other.bias, model.bias)


def test_a_checkpoint_of_an_earlier_version_has_equal_batches(tmp_path, config):
    path, training = tmp_path / "step-000001.pt", dict.fromkeys(TRAINING_FIELDS - {"batch_sizes"}, 0)
    write_checkpoint(path, config, "0" * 64, nn.Linear(3, 2).state_dict(), training)
    assert read_checkpoint(path)["training"] == training | {"batch_sizes": None}


def test_weights_of_another_network_are_refused(saved):
    path, _ = saved
    with pytest.raises(InputError, match="another network"):
        load_weights(nn.Linear(4, 2), read_checkpoint(path), path)


@given(st.data())
def test_no_corrupt_file_is_read(tmp_path_factory, data):
    """Truncated anywhere, with one byte changed anywhere, or with a byte too many."""
    path = tmp_path_factory.getbasetemp() / "step-000001.pt"
    write_checkpoint(path, TrainConfig(), "0" * 64, nn.Linear(10, 10).state_dict())
    complete = path.read_bytes()
    seal_start = len(complete) - SEAL_BYTES
    place = data.draw(st.one_of(st.integers(0, len(complete) - 1), st.integers(seal_start, len(complete) - 1)))
    truncated, changed = complete[:place], bytearray(complete)
    changed[place] ^= data.draw(st.integers(1, 255))
    for corrupt in (truncated, bytes(changed), complete + b"\0"):
        path.write_bytes(corrupt)
        with pytest.raises(InputError, match=r"is truncated, or not a checkpoint|is corrupt: its checksum"):
            read_checkpoint(path)


@given(st.data())
def test_a_plain_torch_file_is_refused_complete_or_truncated(tmp_path_factory, data):
    """As earlier versions wrote it: nothing shows whether the weights in it are still what they were."""
    path = tmp_path_factory.getbasetemp() / "plain.pth"
    torch.save({"a": torch.ones(100)}, path)
    complete = path.read_bytes()
    path.write_bytes(complete[: data.draw(st.integers(0, len(complete)))])
    assert read_seal(path) is None
    with pytest.raises(InputError, match="is truncated, or not a checkpoint"):
        read_checkpoint(path)


class Trap:
    def __reduce__(self):
        return os.system, ("echo trapped > trap.txt",)


def test_a_foreign_checkpoint_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Trap()}, "trap.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Trap()))
    seal(tmp_path / "sealed.pth", {"config": {}, "fingerprint": "", "model": Trap(), "training": None})
    for name in ("trap.pth", "raw.pth", "sealed.pth"):
        with pytest.raises(InputError, match="not a checkpoint"):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "trap.txt").exists()
    pickle.loads((tmp_path / "raw.pth").read_bytes())  # the trap works
    assert (tmp_path / "trap.txt").exists()


FOREIGN = {
    "a field": {"model": {}},
    "a list": [1, 2],
    "a tensor": torch.ones(3),
    "a training that is a number": {"config": {}, "fingerprint": "", "model": {}, "training": 1},
    "a training without ranks": {
        "config": {}, "fingerprint": "", "model": {}, "training": dict.fromkeys(TRAINING_FIELDS - {"ranks"}, 0),
    },
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_other_content_is_refused(tmp_path, case):
    seal(tmp_path / "other.pth", FOREIGN[case])
    with pytest.raises(InputError, match="not a checkpoint of this workbook"):
        read_checkpoint(tmp_path / "other.pth")


def test_a_bad_setting_in_a_checkpoint_is_named(saved):
    path, _ = saved
    content = torch.load(path, weights_only=True)
    seal(path, content | {"config": content["config"] | {"schedule": "none"}})
    with pytest.raises(InputError, match=r"does not fit: config.schedule: "):
        read_checkpoint(path)


def test_a_missing_file_and_one_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist; the run that writes it has not finished here"):
        read_checkpoint(tmp_path / "missing.pth")
    with pytest.raises(InputError, match="cannot read "):
        read_checkpoint(tmp_path)


def test_a_seal_is_seen_without_reading_the_file(saved, tmp_path):
    path, _ = saved
    complete = path.read_bytes()
    assert read_seal(path) == hashlib.sha256(complete[:-SEAL_BYTES]).hexdigest()
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "truncated").write_bytes(complete[:-1])
    assert not any(read_seal(tmp_path / name) for name in ("empty", "truncated"))
    with pytest.raises(InputError, match="does not exist"):
        read_seal(tmp_path / "missing")
