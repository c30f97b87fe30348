"""A course of four small notebooks, in which the second one takes long."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from conftest import ROOT

from ddp_workbook.course.runner import COURSE

PARAMETERS = 'RECIPE = "a"\nDATA_DIR = "data"\nEPOCHS = None\nRETRAIN = False'
TRAINING = """
import time
from pathlib import Path

Path("begun").touch()
try:
    time.sleep(1000)
finally:
    time.sleep(0.5)
    Path("checkpoint").touch()  # as the training does, at the end of a step
"""


def make_small_course(folder: Path, *cells: str) -> None:
    """COURSE in the folder; these are the cells of the second notebook."""
    for number, name in enumerate(COURSE, start=1):
        sources = [PARAMETERS, *(cells if number == 2 else ("1 + 1",))]
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
        notebook.cells[0].metadata["tags"] = ["parameters"]
        nbformat.write(notebook, folder / name)


def start_command(folder: Path, *arguments: str) -> subprocess.Popen:
    """`ddp-workbook` with these arguments, in the folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "ddp_workbook.cli", *arguments], cwd=folder, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def wait_for(path: Path, seconds: float = 60) -> None:
    """Until the file is there."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.05)
