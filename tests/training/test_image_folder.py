"""Images from elsewhere are data: bounded, checked, never run, and unable to break out of their folder."""

import os
import pickle
import struct
import zlib

import pytest
from PIL import Image

from ddp_workbook.config import TrainConfig
from ddp_workbook.errors import InputError
from ddp_workbook.records.run import LONGEST_NAME
from ddp_workbook.training import image_folder
from ddp_workbook.training.datasets import load_dataset

posix = pytest.mark.skipif(os.name != "posix", reason="links, pipes and odd names as POSIX has them")


@pytest.fixture
def tree(tmp_path):
    """data/train/<a|b>/0.png and data/test/<a|b>/0.png"""
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / "data" / part / name).mkdir(parents=True)
            Image.new("RGB", (30, 30)).save(tmp_path / "data" / part / name / "0.png")
    return tmp_path / "data"


def load(tree, **changes):
    return load_dataset(TrainConfig(dataset="imagefolder", data_dir=tree, **changes))


@pytest.fixture
def bright_tree(tmp_path):
    """train/<class>/*.png and test/<class>/*.png; class b is bright."""
    for part, count in (("train", 5), ("test", 2)):
        for name, value in (("a", 30), ("b", 220)):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40 + 7 * i, 60), (value, value, i)).save(folder / f"{i}.png")
    return tmp_path


def test_images_are_read_with_their_classes(bright_tree):
    data = load(bright_tree)
    assert data.classes == ("a", "b")
    assert data.train.images.shape == (10, 32, 32, 3)
    assert data.train.images[..., 0].float().mean((1, 2)).tolist() == [30.0] * 5 + [220.0] * 5
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert load(bright_tree, image_size=64).train.images.shape == (10, 64, 64, 3)


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
def test_the_fault_of_a_spoilt_tree_is_named(bright_tree, spoil, message):
    spoil(bright_tree)
    with pytest.raises(InputError, match=message):
        load(bright_tree)


def test_images_that_would_fill_the_memory_are_refused(bright_tree, monkeypatch):
    monkeypatch.setattr(image_folder.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(InputError, match="use a smaller --image-size"):
        load(bright_tree)


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
    (content("truncated", png(30, 30)[:40]), r"1\.png cannot be read"),
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
