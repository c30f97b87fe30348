"""report.toml: names, contributions and thoughts, written by the reader. Checked: text of limited size."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ddp_workbook.errors import InputError, first_fault
from ddp_workbook.records.fields import is_plain

TEAM_FILE = Path("report.toml")
LARGEST_TEAM_FILE = 100_000  # bytes


def _one_paragraph(text: object) -> object:
    """Line breaks become spaces; other control characters are rejected."""
    if not isinstance(text, str):
        return text
    joined = " ".join(text.split())
    if not is_plain(joined):
        raise ValueError("must not contain control characters")
    return joined


Text = Annotated[str, BeforeValidator(_one_paragraph), Field(min_length=1, max_length=2000)]
Thought = Annotated[str, BeforeValidator(_one_paragraph), Field(max_length=2000)]  # empty: not written yet


class Member(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Text
    contribution: Text


class Team(BaseModel):
    """The content of report.toml. The report names each of the team's three thoughts that is still empty."""

    model_config = ConfigDict(extra="forbid")
    title: Text
    course: Text
    institution: Text
    repository: Text
    surprise: Thought = ""
    largest_gap: Thought = ""
    next_change: Thought = ""
    members: Annotated[list[Member], Field(min_length=1, max_length=50)]


def load_team(path: Path) -> Team:
    """Raises InputError, naming the field, when the file is missing or does not fit."""
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is not a file; restore it from the repository")
        if path.stat().st_size > LARGEST_TEAM_FILE:
            raise InputError(f"{path} is larger than {LARGEST_TEAM_FILE} bytes; keep to names and contributions")
        return Team.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); restore it from the repository") from error
    except ValidationError as error:
        raise InputError(f"{path} does not fit: {first_fault(error)[:300]}") from None
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, a number of 5000 digits, endless brackets
        raise InputError(f"{path} is not valid TOML ({str(error)[:200]})") from None
