"""report.toml: what is wrong with it is said in one line."""

import pytest
from conftest import ROOT

from ddp_workbook.errors import InputError
from ddp_workbook.report.members import load_team


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("title = ", "not valid TOML"),
        ('title = "x"', "does not fit: course"),
        ((ROOT / "report.toml").read_text().replace("title =", "titel ="), "titel|title"),
        ("#" * 200_000, "larger than"),
        ((ROOT / "report.toml").read_text().replace('surprise = ""', "surprise = 3"), "surprise: .*string"),
        ((ROOT / "report.toml").read_text().replace('surprise = ""', f'surprise = "{"x" * 2001}"'), "surprise: .*2000"),
        ((ROOT / "report.toml").read_text().replace('surprise = ""', r'surprise = "\u001b[31m"'), "control characters"),
    ],
)
def test_a_bad_report_toml_is_refused(tmp_path, content, message):
    (tmp_path / "report.toml").write_text(content)
    with pytest.raises(InputError, match=message):
        load_team(tmp_path / "report.toml")


def test_a_missing_report_toml_is_named(tmp_path):
    with pytest.raises(InputError, match=r"report.toml .*restore it"):
        load_team(tmp_path / "report.toml")
