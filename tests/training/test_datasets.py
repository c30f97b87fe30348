"""Data sets: what is read, and the message when it cannot be read."""

import os
import pickle
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, needs_real_data
from sklearn.datasets import load_digits

from ddp_workbook.config import TrainConfig
from ddp_workbook.errors import InputError
from ddp_workbook.specs import DATASETS
from ddp_workbook.training import datasets
from ddp_workbook.training.datasets import load_dataset


def config(dataset, data_dir=ROOT / "data", **changes):
    return TrainConfig(dataset=dataset, data_dir=Path(data_dir), **changes)


def check(data):
    assert (len(data.train), len(data.test)) == DATASETS[data.name].images
    assert data.train.images.dtype == torch.uint8
    assert data.train.images.shape[1:] == (32, 32, 3)
    assert len(data.classes) == 10
    assert data.train.labels.unique().tolist() == list(range(10))


def test_digits_are_scikit_learns():
    data = load_dataset(config("digits"))
    check(data)
    judge = load_digits()
    both = torch.cat([data.train.labels, data.test.labels])
    assert torch.bincount(both).tolist() == np.bincount(judge.target).tolist()
    small = torch.nn.functional.avg_pool2d(data.test.images.permute(0, 3, 1, 2).float(), 4)[:, 0]
    originals = torch.from_numpy(judge.images).float() * 255 / 16
    nearest = torch.cdist(small.flatten(1), originals.flatten(1)).argmin(1)
    assert (torch.from_numpy(judge.target)[nearest] == data.test.labels).float().mean() > 0.98
    assert load_dataset(config("digits")).info() == data.info()


def test_statistics_are_those_of_numpy():
    data = load_dataset(config("digits"))
    pixels = data.train.images.numpy().reshape(-1, 3) / 255
    assert data.mean.numpy() == pytest.approx(pixels.mean(0), rel=1e-4)
    assert data.std.numpy() == pytest.approx(pixels.std(0), rel=1e-4)


@pytest.mark.parametrize("part", ["train", "test"])
def test_the_fingerprint_sees_a_single_pixel_and_a_single_label(part):
    """It is computed once for each Dataset, so replace() stands for loading the changed images."""
    data = load_dataset(config("digits"))
    found = [data.fingerprint, replace(data).info().fingerprint]
    getattr(data, part).images[7, 3, 3, 1] += 1
    found.append(replace(data).fingerprint)
    getattr(data, part).labels[5] += 1
    found.append(replace(data).fingerprint)
    assert found[0] == found[1]
    assert len(set(found[1:])) == 3


@needs_real_data
def test_cifar10():
    data = load_dataset(config("cifar10"))
    check(data)
    assert data.mirror_keeps_class
    assert data.classes[:2] == ("airplane", "automobile")
    assert data.mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-3)  # the values that are usually quoted


@needs_real_data
def test_mnist_is_scaled_and_grey():
    data = load_dataset(config("mnist"))
    check(data)
    assert not data.mirror_keeps_class
    assert torch.equal(data.test.images[..., 0], data.test.images[..., 2])


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils.urllib.request.urlopen", refuse)


@pytest.mark.parametrize(("name", "folder"), [("cifar10", "cifar-10-batches-py"), ("mnist", "MNIST/raw")])
def test_without_data_and_network_the_message_says_what_to_do(tmp_path, no_network, name, folder):
    place = tmp_path / "nowhere"
    with pytest.raises(InputError) as refusal:
        load_dataset(config(name, place))
    assert str(place / folder) in str(refusal.value)
    assert "--recipe resnet50-digits" in str(refusal.value)
    assert not place.exists()  # no incomplete folder is left


def test_damaged_data_is_called_damaged(tmp_path, no_network):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"truncated")
    with pytest.raises(InputError, match="damaged data"):
        load_dataset(config("cifar10", tmp_path))
    assert (folder / "data_batch_1").read_bytes() == b"truncated"


def test_a_file_in_place_of_the_folder_is_refused(tmp_path, no_network):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="could not download"):
        load_dataset(replace(config("cifar10"), data_dir=tmp_path / "file"))


def test_of_two_processes_that_start_together_one_downloads(tmp_path, monkeypatch):
    """Threads stand for processes: the lock is on a file, and each takes its own."""
    downloads = []

    def slow_download(reader, data_dir, folder):
        downloads.append(folder)
        time.sleep(0.5)
        (data_dir / folder).mkdir()

    def open_parts(reader, data_dir):
        if not (data_dir / "there").exists():
            raise RuntimeError("Dataset not found")
        return "train", "test"

    monkeypatch.setattr(datasets, "_download", slow_download)
    monkeypatch.setattr(datasets, "_open_parts", open_parts)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: datasets._fetch(object, tmp_path, "there", "there/*"), range(4)))
    assert found == [("train", "test")] * 4
    assert downloads == ["there"]


# Files from elsewhere


class Trap:
    def __reduce__(self):
        return os.system, ("echo trapped > trap.txt",)


def test_a_foreign_cifar10_runs_nothing(no_network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("data/cifar-10-batches-py")
    folder.mkdir(parents=True)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "batches.meta"]:
        (folder / name).write_bytes(pickle.dumps({"data": Trap(), "labels": []}))
    with pytest.raises(InputError, match="damaged data"):
        load_dataset(TrainConfig())
    assert not Path("trap.txt").exists()


def idx(dims, data):
    return struct.pack(f">I{len(dims)}I", 0x0800 + len(dims), *dims) + data


MNIST_FILES = {
    "empty": (b"", b""),
    "truncated": (idx([60_000, 28, 28], b"x" * 100), idx([60_000], b"x" * 100)),
    "wrong shape": (idx([20, 5, 5], bytes(500)), idx([20], bytes(range(10)) * 2)),
    "labels of no digit": (idx([20, 28, 28], bytes(20 * 784)), idx([20], b"\xc8" * 20)),
    "fewer labels": (idx([20, 28, 28], bytes(20 * 784)), idx([10], bytes(range(10)))),
    "more pixels announced than there are": (idx([2**31, 28, 28], b""), idx([2**31], b"")),
    "an unknown type": (b"\x00\x00\x99\x03" + bytes(100), b"\x00\x00\x99\x01" + bytes(100)),
}


@pytest.mark.parametrize("case", MNIST_FILES)
def test_a_foreign_mnist_is_refused(no_network, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    folder = Path("data/MNIST/raw")
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        for name, data in zip(("images-idx3", "labels-idx1"), MNIST_FILES[case], strict=True):
            (folder / f"{part}-{name}-ubyte").write_bytes(data)
    with pytest.raises(InputError, match="damaged data"):
        load_dataset(TrainConfig(dataset="mnist"))


def test_an_endless_mnist_is_not_read(no_network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("data/MNIST/raw")
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        for name in ("images-idx3", "labels-idx1"):
            with (folder / f"{part}-{name}-ubyte").open("wb") as file:
                file.truncate(2**36)  # sparse: takes no space
    with pytest.raises(InputError, match="larger than any file of MNIST"):
        load_dataset(TrainConfig(dataset="mnist"))
