"""What a judge can say: right, or the first thing that is wrong."""

from __future__ import annotations

NOT_SOLVED = "not-solved"  # the diagnosis of a stub


class Wrong(Exception):
    """An answer is wrong. `diagnosis` names the mistake in a word, for records and tests; `message` is for the reader.

    It gives the symptom, a number, and where to look; it does not give the answer away.
    """

    def __init__(self, diagnosis: str, message: str) -> None:
        super().__init__(diagnosis, message)
        self.diagnosis, self.message = diagnosis, message

    def __str__(self) -> str:
        return self.message


class CannotJudge(Exception):
    """The judge could not run all of its cases. That is never counted as right."""
