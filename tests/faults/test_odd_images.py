"""Images of every kind are read as what they show, or refused with their name; what is left out is said."""

import struct

import numpy as np
import PIL
import pytest
from PIL import Image

import distributed_train
from ddp_workbook.config import TrainConfig
from ddp_workbook.errors import InputError
from ddp_workbook.training.datasets import load_dataset

RAMP = np.linspace(0, 65535, 32 * 32).round().astype(np.uint16).reshape(32, 32)
WHITE, BLACK, RED, NOTHING = [255] * 3, [0] * 3, [255, 0, 0], (0, 0, 0, 0)


@pytest.fixture
def tree(tmp_path):
    """<train|test>/<a|b>/0.png, each red."""
    for place in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "data" / place).mkdir(parents=True)
        Image.new("RGB", (32, 32), "red").save(tmp_path / "data" / place / "0.png")
    return tmp_path / "data"


def load(tree):
    return load_dataset(TrainConfig(dataset="imagefolder", data_dir=tree))


def first(tree, image, name, **options):
    """The pixels of an image that is saved as the first one of class a."""
    image.save(tree / "train" / "a" / f"-first{name}", **options)
    return load(tree).train.images[0]


@pytest.mark.parametrize(("kind", "order"), [(".png", "<u2"), (".pgm", "<u2"), (".tif", "<u2"), (".tif", ">u2")])
def test_16_bits_are_scaled_to_8(tree, kind, order):
    """Not cut off at 255, which would make nearly all pixels white."""
    pixels = first(tree, Image.fromarray(RAMP.astype(order)), kind)
    assert pixels.float().mean().item() == pytest.approx(127.5, abs=0.5)
    assert np.array_equal(pixels[..., 0].numpy(), np.rint(RAMP / 257).astype(np.uint8))
    assert pixels[0, 0].tolist() == BLACK
    assert pixels[-1, -1].tolist() == WHITE


def shape(mode, background, foreground):
    """A square of the foreground in the left half."""
    image = Image.new(mode, (32, 32), background)
    image.paste(foreground, (0, 0, 16, 32))
    return image


def with_palette(**info):
    image = shape("P", 0, 1)
    image.putpalette([9, 9, 9, 255, 0, 0])
    image.info |= info
    return image


KNOWN = {  # the image, its ending, and the colours of its two halves
    "black and white": (shape("1", 1, 0), ".png", BLACK, WHITE),
    "grey": (shape("L", 255, 0), ".png", BLACK, WHITE),
    "a palette": (with_palette(), ".png", RED, [9, 9, 9]),
    "a palette with a transparent colour": (with_palette(transparency=0), ".png", RED, WHITE),
    "a black drawing on nothing": (shape("RGBA", NOTHING, (0, 0, 0, 255)), ".png", BLACK, WHITE),
    "half transparent": (shape("RGBA", NOTHING, (255, 0, 0, 128)), ".png", [255, 127, 127], WHITE),
    "grey on nothing": (shape("LA", (0, 0), (0, 255)), ".png", BLACK, WHITE),
    "WebP with alpha": (shape("RGBA", NOTHING, (0, 0, 0, 255)), ".webp", BLACK, WHITE),
    "CMYK": (shape("CMYK", (0, 0, 0, 0), (0, 255, 255, 0)), ".tif", RED, WHITE),
    "YCbCr": (shape("YCbCr", (255, 128, 128), (0, 128, 128)), ".tif", BLACK, WHITE),
}


@pytest.mark.parametrize("case", KNOWN)
def test_a_known_mode_shows_its_colours(tree, case):
    image, kind, left, right = KNOWN[case]
    if case == "YCbCr" and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("Pillow before 13 cannot read the YCbCr file that it writes")
    options = {"lossless": True} if kind == ".webp" else {}
    pixels = first(tree, image, kind, **options)
    assert pixels[16, 4].tolist() == left
    assert pixels[16, 28].tolist() == right


def tiff(bits, black, data):
    """A little-endian TIFF of 32 x 32 grey pixels; `black`: 1 where 0 is black."""
    tags = [(256, 32), (257, 32), (258, bits), (259, 1), (262, black), (273, 8), (277, 1), (278, 32), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


UNKNOWN = {
    "floating point": (Image.fromarray(np.ones((32, 32), np.float32)), "its pixels are of mode F;"),
    "32 bits": (Image.fromarray(np.ones((32, 32), np.int32)), "its pixels are of mode I;"),
    "LAB": (Image.new("LAB", (32, 32)), "its pixels are of mode LAB;"),
    "12 bits": (tiff(12, 1, bytes(32 * 48)), "12 bits per pixel, or 0 is white"),
    "16 bits, 0 is white": (tiff(16, 0, bytes(32 * 64)), "12 bits per pixel, or 0 is white"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_numbers_without_a_known_range_are_refused_by_name(tree, case):
    image, words = UNKNOWN[case]
    path = tree / "test" / "b" / "1.tif"
    if isinstance(image, bytes):
        path.write_bytes(image)
    else:
        image.save(path)
    with pytest.raises(InputError, match=words) as refusal:
        load(tree)
    assert str(refusal.value).startswith(f"{path} cannot be read as an image (")


def test_a_tiff_of_our_own_is_read(tree):
    (tree / "train" / "a" / "-first.tif").write_bytes(tiff(16, 1, RAMP.astype("<u2").tobytes()))
    assert load(tree).train.images[0].float().mean().item() == pytest.approx(127.5, abs=0.5)


def test_files_that_are_not_used_are_counted_and_said_once(tree, tmp_path, capsys):
    assert load(tree).note is None
    for number in range(3):
        Image.new("L", (32, 32)).save(tree / "train" / "b" / f"{number}.GIF")
    (tree / "test" / "list.txt").write_text("a picture of")
    (tree / "test" / "a" / "README").write_text("a picture of")
    (tree / "test" / "a" / ".DS_Store").write_text("hidden, as everywhere")
    note = load(tree).note
    assert note.startswith(f"5 file(s) in {tree} are not used (3 x .gif, 1 x ")
    assert "1 x .txt" in note and "1 x no ending" in note
    flags = ["--recipe", "mlp-digits", "--dataset", "imagefolder", "--data-dir", str(tree), "--batch-size", "1"]
    places = ["--results-dir", str(tmp_path / "r"), "--checkpoint-dir", str(tmp_path / "c"), "--epochs", "1"]
    distributed_train.main([*flags, *places, "--device", "cpu"])
    assert capsys.readouterr().out.count(note + "\n") == 1


def test_a_well_formed_mnist_of_200_images_is_refused(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">4I", 0x803, 200, 28, 28) + bytes(200 * 28 * 28)
        )
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 200) + bytes(range(10)) * 20)
    with pytest.raises(InputError) as refusal:
        load_dataset(TrainConfig(dataset="mnist", data_dir=tmp_path))
    assert str(refusal.value) == (
        f"damaged data: MNIST has 60000 training and 10000 test images, but there are 200 and 200 in "
        f"{tmp_path / 'MNIST'}; move them away to download them"
    )
