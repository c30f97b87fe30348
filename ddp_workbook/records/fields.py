"""Types of the fields of records, and the base of all records."""

from __future__ import annotations

import unicodedata
from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

LONGEST_NAME = 200  # characters of a class's name, or of what a machine calls itself


def is_plain(text: str) -> bool:
    """True for text without control characters that UTF-8 can encode."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def _plain(text: str) -> str:
    if not is_plain(text):
        raise ValueError("must not contain control characters")
    return text


def moment(text: str) -> str:
    """An ISO time from 1970 on, where the clock of a computer without a battery begins."""
    if datetime.fromisoformat(text).year < 1970:
        raise ValueError("must be a year from 1970 on")
    return text


Count = Annotated[int, Field(ge=0, lt=2**63)]
Amount = Annotated[float, Field(ge=0, le=1e18, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(max_length=LONGEST_NAME), AfterValidator(_plain)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Strict(BaseModel):
    """Base of all records: unknown fields are refused, values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)
