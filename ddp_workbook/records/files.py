"""Atomic file writes, locks, and JSON records that are checked when they are read."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from ddp_workbook.errors import InputError, first_fault

LARGEST_RECORD = 50_000_000  # bytes; a larger file is not a record of this workbook
AnyRecord = TypeVar("AnyRecord", bound=BaseModel)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Create or replace `path` completely or not at all: temporary file, flush to disk, rename.

    Raises InputError when the folder cannot be created or written to; an existing file then stays as it was.
    """
    name = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            name = file.name
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if os.name == "posix":  # temporary files are private; the result gets the permissions of the user's umask
            umask = os.umask(0)
            os.umask(umask)
            Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror or error}); choose a writable folder") from error
    finally:
        if name:
            Path(name).unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Only after this does the new name survive a power cut. Windows has no such call, and needs none."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def require_writable(folder: Path) -> None:
    """Create the folder if it does not exist. Raises InputError when no file can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write into {folder} ({error.strerror}); choose a writable folder") from error


@contextmanager
def lock(path: Path, advice: str) -> Iterator[None]:
    """Hold a lock file during the block; the operating system frees it even when this process dies.

    Raises InputError at once, naming the process that holds it, when it is taken; `advice` ends the message.
    """
    holder = path.with_suffix(".holder")
    try:
        with FileLock(path, timeout=0):
            save_text(json.dumps([os.getpid(), f"{datetime.now():%Y-%m-%d %H:%M:%S}"]), holder)
            try:
                yield
            finally:
                holder.unlink(missing_ok=True)
    except Timeout:
        raise InputError(f"{path.parent} is in use by another run ({_describe_holder(holder)}); {advice}") from None


def _describe_holder(holder: Path) -> str:
    with suppress(OSError, ValueError, TypeError):
        process, since = json.loads(holder.read_text())
        return f"process {int(process)}, since {since:.19}"
    return "which has just started"


def save_record(record: BaseModel, path: Path) -> None:
    """Write the record as JSON, atomically."""
    save_text(record.model_dump_json(indent=1) + "\n", path)


def save_text(text: str, path: Path) -> None:
    """Write the text as UTF-8, atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def load_record(schema: type[AnyRecord], path: Path) -> AnyRecord:
    """Read and check one record. Raises InputError that names the file and the first field that does not fit."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would block, and a device may never end
            raise InputError(f"cannot read {path} (it is not a file); remove it")
        if status.st_size > LARGEST_RECORD:
            raise InputError(f"{path} is larger than any record of this workbook; remove it")
        return schema.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; the run that writes it has not finished here") from None
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror or error})") from error
    except ValidationError as error:
        raise InputError(
            f"{path} does not fit: {first_fault(error)}; run the command or notebook that writes it again"
        ) from None
