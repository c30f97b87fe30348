"""Atomic file writes, locks, and JSON records that are checked when they are read."""

from __future__ import annotations

import hashlib
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
TEMPORARY = ".tmp"
AnyRecord = TypeVar("AnyRecord", bound=BaseModel)
Result = TypeVar("Result")


def write_atomically(path: Path, write: Callable[[BinaryIO], Result]) -> Result:
    """Create or replace `path` completely or not at all: temporary file, flush to disk, rename. Returns write's result.

    Raises InputError when the folder cannot be created or written to; an existing file then stays as it was.
    """
    name = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=_prefix(path), suffix=TEMPORARY, delete=False) as file:
            name = file.name
            result = write(file)
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
    return result


def _prefix(path: Path) -> str:
    """How the names of all temporary files of `path` begin."""
    return f".{path.name.removeprefix('.')}."


def _flush_folder(folder: Path) -> None:
    """Only after this does the new name survive a power cut. Windows has no such call, and needs none."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def staged(path: Path, token: str) -> Path:
    """Where a complete new version of `path` waits for the moment from which it counts."""
    return path.with_name(f"{_prefix(path)}{token[:16]}{TEMPORARY}")


def put_in_place(path: Path, token: str) -> None:
    """Replace `path` by its staged() version, if that is still there. Raises InputError when this fails."""
    new = staged(path, token)
    try:
        if new.exists():
            new.replace(path)
            _flush_folder(path.parent)
    except FileNotFoundError:
        pass  # another process did the same in between
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror or error}); choose a writable folder") from error


def remove_temporary(path: Path) -> None:
    """Remove what killed processes have left of writing `path`; call it where nobody else can write it."""
    for left in path.parent.glob(f"{_prefix(path)}*{TEMPORARY}"):
        with suppress(OSError):  # a name that somebody else has given to something else
            left.unlink()


def require_writable(folder: Path) -> None:
    """Create the folder if it does not exist. Raises InputError when no file can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write into {folder} ({error.strerror}); choose a writable folder") from error


def require_file(path: Path) -> os.stat_result:
    """The status of a regular file. Raises FileNotFoundError, or InputError for anything else that has this name.

    A folder cannot be replaced by a file; reading a pipe would block, and a device may never end.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"cannot read or replace {path} (it is not a file); remove it or rename it")
    return status


def require_replaceable(path: Path) -> None:
    """Raises InputError when write_atomically() could not write this file: better now than at the end of a run."""
    require_writable(path.parent)
    try:
        owner, folder = require_file(path).st_uid, path.parent.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}); remove it or rename it") from error
    shared = os.name == "posix" and folder.st_mode & stat.S_ISVTX  # as /tmp is: each user can only replace own files
    if shared and os.geteuid() not in (0, owner, folder.st_uid):
        raise InputError(f"{path} belongs to another user; choose another folder")


@contextmanager
def lock(path: Path, advice: str) -> Iterator[None]:
    """Hold a lock file during the block; the operating system frees it even when this process dies.

    Raises InputError at once, naming the process that holds it, when it is taken; `advice` ends the message.
    """
    holder = path.with_suffix(".holder")
    try:
        held = FileLock(path, timeout=0).acquire()
    except Timeout:
        raise InputError(f"{path.parent} is in use by another run ({_describe_holder(holder)}); {advice}") from None
    except (OSError, NotImplementedError) as error:  # it belongs to another user, or the file system has no locks
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot lock {path} ({reason}); remove that file, or choose another folder") from error
    with held:
        remove_temporary(holder)
        save_text(json.dumps([os.getpid(), f"{datetime.now():%Y-%m-%d %H:%M:%S}"]), holder)
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)


def _describe_holder(holder: Path) -> str:
    with suppress(OSError, ValueError, TypeError):
        process, since = json.loads(holder.read_text())
        return f"process {int(process)}, since {since:.19}"
    return "which has just started"


def save_record(record: BaseModel, path: Path) -> None:
    """Write the record as JSON, atomically."""
    save_text(to_json(record), path)


def to_json(record: BaseModel) -> str:
    """The text of a record's file."""
    return record.model_dump_json(indent=1) + "\n"


def save_text(text: str, path: Path) -> None:
    """Write the text as UTF-8, atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def sha256(data: bytes) -> str:
    """The digest in hex."""
    return hashlib.sha256(data).hexdigest()


def load_record(schema: type[AnyRecord], path: Path, digest: str | None = None) -> AnyRecord:
    """Read and check one record. Raises InputError that names the file and the first field that does not fit.

    `digest`: the sha256() that the file must have, where another record names it.
    """
    try:
        if require_file(path).st_size > LARGEST_RECORD:
            raise InputError(f"{path} is larger than any record of this workbook; remove it")
        data = path.read_bytes()
        record = schema.model_validate_json(data)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; the run that writes it has not finished here") from None
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror or error})") from error
    except ValidationError as error:
        raise InputError(
            f"{path} does not fit: {first_fault(error)}; run the command or notebook that writes it again"
        ) from None
    if digest not in (None, sha256(data.replace(b"\r\n", b"\n"))):  # a checkout on Windows may change line ends
        raise InputError(f"{path} was changed, or is of another run than the record that names it; run that again")
    return record
