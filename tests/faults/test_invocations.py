"""Invalid invocations, the complete table: exit code 2, one line, no traceback, earlier results byte-identical."""

import pytest
from helper_bad_invocations import TABLE, check_refused


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_an_invalid_invocation(case, refuse, course_folder, monkeypatch):
    check_refused(case, refuse, course_folder, monkeypatch)
