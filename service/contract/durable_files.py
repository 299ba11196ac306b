"""Files that are replaced as a whole and outlive a power cut, and locks on files."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .errors import StoreCorrupt

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def atomic_write(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Open a draft that replaces a file when the block succeeds, and is removed when it fails.

    Readers see the old file or the new one, also after a power cut.

    Args:
        mode: permissions of a new file, before the umask.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with open(draft, "w+b", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file by :func:`atomic_write`."""
    data = json.dumps(value, indent=1, allow_nan=False).encode()
    with atomic_write(path) as file:
        file.write(data)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises StoreCorrupt for anything else, FileNotFoundError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise StoreCorrupt(f"{path.name} is not JSON") from error
    if not isinstance(value, dict):
        raise StoreCorrupt(f"{path.name} is not a JSON object")
    return value


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Fsync a file, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def hold_lock(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a file, created if missing, against other threads and processes.

    The system releases it if its holder crashes.

    Args:
        wait: wait for the lock; otherwise yield False if it is taken.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)  # releases the lock


def folder_names(root: Path) -> list[str]:
    """Return the names of the folders in a folder; empty if it does not exist."""
    try:
        return [entry.name for entry in os.scandir(root) if entry.is_dir()]
    except FileNotFoundError:
        return []


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error means that the disk is full, also if a library says so only in its message."""
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return True
    # safetensors: "I/O error: No space left on device (os error 28)"; Redis: "MISCONF … No space left on device"
    return any(f"(os error {number})" in str(error) or os.strerror(number) in str(error) for number in _DISK_FULL)
