"""Files that appear whole or not at all, and JSON that is checked when it is read."""

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

from ddp_workbook.errors import InputError

LARGEST_RECORD = 50_000_000  # bytes; a larger file is not one of ours
AnyRecord = TypeVar("AnyRecord", bound=BaseModel)


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Create or replace `path` whole or not at all: temporary file, flush to disk, rename.

    Raises InputError when the folder cannot be made or written; what was there before then stays.
    """
    name = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            name = file.name
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if os.name == "posix":  # the temporary file is private; the result gets what the user's umask allows
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
    """Only then does the new name survive a power cut. Windows has no such call, and needs none."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def hold(lock: Path, advice: str) -> Iterator[None]:
    """Keep other processes out of what this lock file stands for; the system frees it even when this process dies.

    Raises InputError at once, naming the holder, when somebody else has it.
    """
    holder = lock.with_suffix(".holder")
    try:
        with FileLock(lock, timeout=0):
            save_text(json.dumps([os.getpid(), f"{datetime.now():%Y-%m-%d %H:%M:%S}"]), holder)
            try:
                yield
            finally:
                holder.unlink(missing_ok=True)
    except Timeout:
        raise InputError(f"{lock.parent} is in use by another run ({_describe_holder(holder)}); {advice}") from None


def _describe_holder(holder: Path) -> str:
    with suppress(OSError, ValueError, TypeError):
        process, since = json.loads(holder.read_text())
        return f"process {int(process)}, since {since:.19}"
    return "which has just begun"


def save_record(record: BaseModel, path: Path) -> None:
    """Write the record as JSON, whole or not at all."""
    save_text(record.model_dump_json(indent=1) + "\n", path)


def save_text(text: str, path: Path) -> None:
    """Write the text as UTF-8, whole or not at all."""
    write_whole(path, lambda file: file.write(text.encode()))


def load_record(schema: type[AnyRecord], path: Path) -> AnyRecord:
    """Read and check one record. Raises InputError that names the file and the first field at fault."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would keep us waiting, and a device may never end
            raise InputError(f"cannot read {path} (it is not a file); remove it")
        if status.st_size > LARGEST_RECORD:
            raise InputError(f"{path} is larger than any record of this workbook; remove it")
        return schema.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; the run that makes it has not finished here") from None
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror or error})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(
            f"{path} does not fit: {where}: {first['msg']}; run the training again to replace it"
        ) from None
