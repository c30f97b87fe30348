"""A folder's lock against a second measurement: two at once take each other's cores, and both would be wrong."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from ddp_workbook.records.files import lock


def measuring_alone(folder: Path) -> AbstractContextManager[None]:
    """Hold the folder's lock for the block. Raises InputError, naming the process that holds it, when it is taken."""
    return lock(folder / ".measuring.lock", "wait for it: two at once would disturb each other's timings")
