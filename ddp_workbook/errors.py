"""User errors: reported in one line that says what was wrong and how to fix it, with exit code 2."""

from __future__ import annotations

from pydantic import ValidationError


class InputError(Exception):
    """Bad input. The message is one line: what was wrong, and what would be right."""


def diverged(what: str) -> InputError:
    """The error for a loss or weight that is NaN or infinite; `what` says where it was seen."""
    causes = "--lr too large, --warmup too short, --precision too low (fp32 is the highest)"
    return InputError(f"training diverged: {what}; usual causes: {causes}")


def first_fault(error: ValidationError) -> str:
    """Where a record does not fit its schema and why, in one line."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"


def error_line(program: str, error: InputError) -> str:
    """What a program prints for bad input; message_in() reads it back."""
    return f"{program}: error: {' '.join(str(error).split())}"


def message_in(line: str, program: str) -> str | None:
    """The message of an error_line() of this program; None for any other line."""
    start = error_line(program, InputError(""))
    return line.removeprefix(start) if line.startswith(start) else None
