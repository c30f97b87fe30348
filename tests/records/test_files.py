"""Files are written completely or not at all, with the permissions that the user wants."""

import os

import pytest

from ddp_workbook.errors import InputError
from ddp_workbook.records.files import require_writable, save_text, write_atomically


def test_writing_that_fails_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "file"
    save_text("earlier", path)

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left on device"):
        write_atomically(path, fail)
    assert path.read_text() == "earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "results").write_text("a file in the way")
    with pytest.raises(InputError, match=r"cannot write into .*results.*choose a writable folder"):
        require_writable(tmp_path / "results")
    with pytest.raises(InputError, match=r"cannot write .*file.*choose a writable folder"):
        save_text("x", tmp_path / "results" / "file")


def test_a_folder_that_can_be_written_is_created_and_stays_empty(tmp_path):
    require_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="umask is POSIX")
def test_results_get_the_users_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        save_text("x", tmp_path / "file")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
