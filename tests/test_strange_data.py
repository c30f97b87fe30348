"""Images from elsewhere are data: bounded, checked, never run, and unable to break out of their folder."""

import os
import pickle
import struct
import zlib
from pathlib import Path

import pytest
from ddp_workbook.datasets import load_dataset
from ddp_workbook.record import LONGEST_NAME
from PIL import Image

from ddp_workbook.config import TrainConfig
from ddp_workbook.errors import InputError

posix = pytest.mark.skipif(os.name != "posix", reason="links, pipes and odd names as POSIX has them")


# Image folders


@pytest.fixture
def tree(tmp_path):
    """data/train/<a|b>/0.png and data/test/<a|b>/0.png"""
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / "data" / part / name).mkdir(parents=True)
            Image.new("RGB", (30, 30)).save(tmp_path / "data" / part / name / "0.png")
    return tmp_path / "data"


def load(tree):
    return load_dataset(TrainConfig(dataset="imagefolder", data_dir=tree))


def link_out(tree):
    secret = tree.parent / "private.png"
    Image.new("RGB", (30, 30)).save(secret)
    (tree / "train" / "a" / "1.png").symlink_to(secret)


def link_to_a_folder(tree):
    (tree / "train" / "c").symlink_to(tree.parent)


def link_in_circles(tree):
    (tree / "train" / "a" / "round").symlink_to(tree / "train")


def train_elsewhere(tree):
    (tree / "train").rename(tree.parent / "photos")
    (tree / "train").symlink_to(tree.parent / "photos")


def link_to_itself(tree):
    (tree / "train" / "a" / "1.png").symlink_to(tree / "train" / "a" / "1.png")


def a_pipe(tree):
    os.mkfifo(tree / "train" / "a" / "1.png")


def rename(new):
    def spoil(tree):
        for part in ("train", "test"):
            (tree / part / "b").rename(tree / part / new)

    spoil.__name__ = f"named_{ascii(new)[:20]}"
    return spoil


def png(width, height, chunk=b""):
    """A PNG's head, with a size of our choice and no more pixels than that."""

    def part(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = part(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk + part(b"IDAT", zlib.compress(b"")) + part(b"IEND", b"")


def content(name, data):
    def spoil(tree):
        (tree / "train" / "a" / "1.png").write_bytes(data)

    spoil.__name__ = name
    return spoil


SPOILT = [
    (link_out, "is a link to a folder or out of"),
    (link_to_a_folder, "is a link to a folder or out of"),
    (train_elsewhere, "is a link out of"),
    (link_in_circles, "is a link to a folder or out of"),
    (link_to_itself, "is not a file|cannot be read|is a link"),
    (a_pipe, "is not a file"),
    (rename("line\nbreak"), "without control characters"),
    (rename("\x1b[31mred"), "without control characters"),
    (rename(os.fsdecode(b"not \xff utf-8")), "without control characters"),
    (rename("x" * (LONGEST_NAME + 1)), f"in {LONGEST_NAME} letters"),
    (content("huge", png(100_000, 100_000)), r"1\.png cannot be read"),
    (content("large", png(12_000, 12_000)), r"1\.png cannot be read"),  # PIL alone would only warn
    (content("no pixels", png(0, 0)), r"1\.png cannot be read"),
    (content("torn", png(30, 30)[:40]), r"1\.png cannot be read"),
    (content("empty", b""), r"1\.png cannot be read"),
    (content("gif", b"GIF89a" + b"\xff" * 40), r"1\.png cannot be read"),
    (content("pickle", pickle.dumps(print)), r"1\.png cannot be read"),
]


@posix
@pytest.mark.parametrize(("spoil", "message"), SPOILT, ids=[spoil.__name__ for spoil, _ in SPOILT])
def test_an_image_folder_that_would_harm_is_refused(tree, spoil, message):
    assert len(load(tree).train) == 2
    spoil(tree)
    with pytest.raises(InputError, match=message) as refusal:
        load(tree)
    str(refusal.value).encode()  # the message itself can be written


@posix
def test_postscript_is_not_run(tree, tmp_path, monkeypatch):
    """PIL goes by content and hands an EPS to Ghostscript, whatever the file is called."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tools / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 30\n%%EndComments\nshowpage\n%%EOF\n"
    (tree / "train" / "a" / "1.png").write_bytes(eps)
    with pytest.raises(InputError, match=r"1\.png cannot be read"):
        load(tree)
    assert not (tmp_path / "ran").exists()


@posix
def test_links_within_the_folder_are_fine(tree):
    (tree / "train" / "a" / "1.png").symlink_to(tree / "train" / "a" / "0.png")
    assert len(load(tree).train) == 3


def test_markup_in_a_class_name_is_a_name(tree):
    rename("#panic $x$ *b* @r")(tree)
    assert load(tree).classes == ("#panic $x$ *b* @r", "a")


# MNIST and CIFAR-10


class Trap:
    def __reduce__(self):
        return os.system, ("echo trapped > trap.txt",)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils.urllib.request.urlopen", refuse)
    monkeypatch.chdir(tmp_path)


def test_a_foreign_cifar10_runs_nothing(no_network):
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
    "torn": (idx([60_000, 28, 28], b"x" * 100), idx([60_000], b"x" * 100)),
    "wrong shape": (idx([20, 5, 5], bytes(500)), idx([20], bytes(range(10)) * 2)),
    "labels of no digit": (idx([20, 28, 28], bytes(20 * 784)), idx([20], b"\xc8" * 20)),
    "fewer labels": (idx([20, 28, 28], bytes(20 * 784)), idx([10], bytes(range(10)))),
    "more pixels announced than there are": (idx([2**31, 28, 28], b""), idx([2**31], b"")),
    "an unknown type": (b"\x00\x00\x99\x03" + bytes(100), b"\x00\x00\x99\x01" + bytes(100)),
}


@pytest.mark.parametrize("case", MNIST_FILES)
def test_a_foreign_mnist_is_refused(no_network, case):
    folder = Path("data/MNIST/raw")
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        for name, data in zip(("images-idx3", "labels-idx1"), MNIST_FILES[case], strict=True):
            (folder / f"{part}-{name}-ubyte").write_bytes(data)
    with pytest.raises(InputError, match="damaged data"):
        load_dataset(TrainConfig(dataset="mnist"))


def test_an_endless_mnist_is_not_read(no_network):
    folder = Path("data/MNIST/raw")
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        for name in ("images-idx3", "labels-idx1"):
            with (folder / f"{part}-{name}-ubyte").open("wb") as file:
                file.truncate(2**36)  # sparse: takes no room
    with pytest.raises(InputError, match="larger than any file of MNIST"):
        load_dataset(TrainConfig(dataset="mnist"))
