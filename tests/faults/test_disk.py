"""A disk that is really full: a small tmpfs. Needs Linux and root."""

import os
import shutil
import subprocess
import sys

import matplotlib.pyplot as plt
import pytest
from conftest import ROOT
from helper_bad_invocations import finish_course

from ddp_workbook.analysis import plots
from ddp_workbook.errors import InputError
from ddp_workbook.report.build import build_report

ROOM = 2_000_000  # bytes


@pytest.fixture
def small(tmp_path):
    """A file system of 2 MB of its own."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs Linux and root")
    place = tmp_path / "small"
    place.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(place)], capture_output=True)
    if mount.returncode:
        pytest.skip(f"no tmpfs: {mount.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(place):
    (place / "ballast").write_bytes(b"x" * shutil.disk_usage(place).free)
    assert shutil.disk_usage(place).free == 0


def test_a_figure_on_a_full_disk(small):
    figure = plots.schedule([0.1, 0.2], 1)
    plots.save_png(figure, small / "figure.png")
    earlier = (small / "figure.png").read_bytes()
    fill(small)
    with pytest.raises(InputError, match=r"cannot write .*figure.png \(No space left on device\)"):
        plots.save_png(figure, small / "figure.png")
    plt.close(figure)
    assert (small / "figure.png").read_bytes() == earlier
    assert sorted(path.name for path in small.iterdir()) == ["ballast", "figure.png"]


def test_a_report_on_a_full_disk(small):
    finish_course(small)
    earlier = build_report(small, ROOT / "report.toml").read_bytes()
    fill(small)
    with pytest.raises(InputError, match=r"cannot write .*report.pdf \(No space left on device\)"):
        build_report(small, ROOT / "report.toml")
    assert (small / "report.pdf").read_bytes() == earlier
    assert not list(small.glob(".*"))


def test_a_report_needs_no_temporary_folder(small, tmp_path, monkeypatch):
    finish_course(tmp_path / "run")
    monkeypatch.setattr("tempfile.tempdir", str(small))
    fill(small)
    assert build_report(tmp_path / "run", ROOT / "report.toml").read_bytes().startswith(b"%PDF")
