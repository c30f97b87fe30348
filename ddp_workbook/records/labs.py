"""Schema of results/labs.json: what the reader has tried in the labs, and how it went."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from ddp_workbook.records.run import SCHEMA_VERSION, Amount, Strict


class LabEvent(Strict):
    """One thing that happened in a lab."""

    at: datetime
    what: Literal["try", "hint", "gave up"]
    diagnosis: str | None = None
    """Of a try: 'solved', or the mistake in one word."""
    seconds: Amount | None = None
    """Of a try: how long the judge took."""
    answer: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Of a try: SHA-256 of the answer."""
    lent: list[str] = Field(default_factory=list)
    """Of a try: earlier labs whose reference solution stood in for an answer of the reader's."""


class LabHistory(Strict):
    """One lab, and its events in order."""

    number: Annotated[int, Field(ge=1)]
    title: str
    events: list[LabEvent] = Field(default_factory=list)


class LabsRecord(Strict):
    """All labs by name, those without events too."""

    schema_version: Literal[1] = SCHEMA_VERSION
    labs: dict[str, LabHistory] = Field(default_factory=dict)
