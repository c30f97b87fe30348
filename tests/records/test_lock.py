"""A lock belongs to a living process, and its refusal needs no readable note about the holder."""

import subprocess
import sys

import pytest
from conftest import ROOT
from filelock import FileLock

from ddp_workbook.errors import InputError
from ddp_workbook.records.files import lock


def test_a_process_that_died_holds_no_lock(tmp_path):
    script = "import os, sys, pathlib; from ddp_workbook.records.files import lock\n"
    script += "with lock(pathlib.Path(sys.argv[1]), ''): os._exit(9)"
    command = [sys.executable, "-c", script, str(tmp_path / "x.lock")]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 9
    assert (tmp_path / "x.holder").exists()
    with lock(tmp_path / "x.lock", ""):
        pass
    assert not (tmp_path / "x.holder").exists()


@pytest.mark.parametrize("content", [None, "", "[1]", "{}", '["a", "b"]'])
def test_an_unreadable_note_about_the_holder_does_not_matter(tmp_path, content):
    if content is not None:
        (tmp_path / "x.holder").write_text(content)
    refused = pytest.raises(InputError, match="in use by another run")
    with FileLock(tmp_path / "x.lock"), refused, lock(tmp_path / "x.lock", ""):
        pass
