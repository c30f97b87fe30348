"""How a difference between ranks is put into words, and what counts as one in the code.

With real ranks: faults/test_ranks_that_disagree.py.
"""

import shutil

import pytest

from ddp_workbook.distributed import agreement
from ddp_workbook.distributed.agreement import LONGEST_VALUE, code_checksum, require_agreement
from ddp_workbook.errors import InputError


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1, 2], "1 on rank 0, 2 on rank 1"),
        ([1, 2, 2, 1, 1, 1, 2], "1 on ranks 0, 3-5, 2 on ranks 1-2, 6"),
        ([5, 6, 7], "5 on rank 0, 6 on rank 1, 7 on rank 2"),
        (["x" * 1000, ""], f"{'x' * LONGEST_VALUE} on rank 0,  on rank 1"),
    ],
)
def test_a_difference_is_named_with_its_values_and_ranks(monkeypatch, values, words):
    monkeypatch.setattr(agreement, "gather_objects", lambda facts: [{"the same": 0, "--x": value} for value in values])
    with pytest.raises(InputError) as refusal:
        require_agreement({})
    assert str(refusal.value).startswith(f"the ranks differ in --x: {words}; start all of them")


def test_a_fact_that_only_some_ranks_know_is_a_difference(monkeypatch):
    """As when another version of this package has another flag."""
    monkeypatch.setattr(agreement, "gather_objects", lambda facts: [{"--x": 1}, {"--x": 1, "--new": 2}])
    with pytest.raises(InputError, match="--new: missing on rank 0, 2 on rank 1"):
        require_agreement({})


def test_without_other_ranks_there_is_nothing_to_compare():
    require_agreement({"--x": 1})


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the package and of a script, with a module in a folder."""
    shutil.copytree(agreement.PACKAGE / "records", tmp_path / "package" / "records")
    monkeypatch.setattr(agreement, "PACKAGE", tmp_path / "package")
    (tmp_path / "script.py").write_bytes(b"a = 1\nb = 2\n")
    return tmp_path


def test_every_change_of_the_code_is_seen(copy):
    script, module = copy / "script.py", copy / "package" / "records" / "files.py"
    found = {code_checksum(script)}
    script.write_bytes(b"a = 1\nb = 3\n")
    found.add(code_checksum(script))
    module.write_bytes(module.read_bytes() + b"#")
    found.add(code_checksum(script))
    module.rename(module.with_name("other.py"))
    found.add(code_checksum(script))
    assert len(found) == 4


def test_line_ends_and_other_files_are_no_change(copy):
    script = copy / "script.py"
    before = code_checksum(script)
    script.write_bytes(script.read_bytes().replace(b"\n", b"\r\n"))
    (copy / "package" / "notes.txt").write_text("not code")
    assert code_checksum(script) == before
