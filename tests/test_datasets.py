"""Data sets: what is read, and what is said when it cannot be."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, needs_real_data
from ddp_workbook.datasets import load_dataset
from PIL import Image
from sklearn.datasets import load_digits

from ddp_workbook import datasets
from ddp_workbook.config import IMAGES, TrainConfig
from ddp_workbook.errors import InputError


def config(dataset, data_dir=ROOT / "data", **changes):
    return TrainConfig(dataset=dataset, data_dir=Path(data_dir), **changes)


def check(data):
    assert (len(data.train), len(data.test)) == IMAGES[data.name]
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


def test_the_fingerprint_sees_a_single_pixel():
    data = load_dataset(config("digits"))
    before = data.info().fingerprint
    data.train.images[7, 3, 3, 1] += 1
    assert data.info().fingerprint != before


@needs_real_data
def test_cifar10():
    data = load_dataset(config("cifar10"))
    check(data)
    assert data.mirror_keeps_class
    assert data.classes[:2] == ("airplane", "automobile")
    assert data.mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-3)  # the values that everybody quotes


@needs_real_data
def test_mnist_is_scaled_and_grey():
    data = load_dataset(config("mnist"))
    check(data)
    assert not data.mirror_keeps_class
    assert torch.equal(data.test.images[..., 0], data.test.images[..., 2])


@pytest.fixture
def tree(tmp_path):
    """train/<class>/*.png and test/<class>/*.png; class b is bright."""
    for part, count in (("train", 5), ("test", 2)):
        for name, value in (("a", 30), ("b", 220)):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40 + 7 * i, 60), (value, value, i)).save(folder / f"{i}.png")
    return tmp_path


def test_image_folder(tree):
    data = load_dataset(config("imagefolder", tree))
    assert data.classes == ("a", "b")
    assert data.train.images.shape == (10, 32, 32, 3)
    assert data.train.images[..., 0].float().mean((1, 2)).tolist() == [30.0] * 5 + [220.0] * 5
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert load_dataset(config("imagefolder", tree, image_size=64)).train.images.shape == (10, 64, 64, 3)


def spoil_missing_test(tree):
    (tree / "test").rename(tree / "tests")


def spoil_class_names(tree):
    (tree / "test" / "b").rename(tree / "test" / "c")


def spoil_empty_class(tree):
    for path in (tree / "train" / "b").iterdir():
        path.unlink()


def spoil_image(tree):
    (tree / "train" / "a" / "0.png").write_bytes(b"not a picture")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_missing_test, "must hold one folder of images per class"),
        (spoil_class_names, "same classes; only one has: b, c"),
        (spoil_empty_class, "must hold one folder of images per class"),
        (spoil_image, "0.png cannot be read as an image"),
    ],
)
def test_a_spoilt_tree_is_named(tree, spoil, message):
    spoil(tree)
    with pytest.raises(InputError, match=message):
        load_dataset(config("imagefolder", tree))


def test_images_that_would_fill_the_memory_are_refused(tree, monkeypatch):
    monkeypatch.setattr(datasets.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(InputError, match="use a smaller --image-size"):
        load_dataset(config("imagefolder", tree))


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
    assert not place.exists()  # nothing half-made is left


def test_damaged_data_is_called_damaged(tmp_path, no_network):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"torn")
    with pytest.raises(InputError, match="damaged data"):
        load_dataset(config("cifar10", tmp_path))
    assert (folder / "data_batch_1").read_bytes() == b"torn"


def test_a_file_in_place_of_the_folder(tmp_path, no_network):
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
