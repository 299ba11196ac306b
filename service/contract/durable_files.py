"""JSON files that are read and replaced as a whole, and what it takes that they outlive a power cut."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import StoreCorrupt


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file so that a reader sees the old or the new one, also after a power cut."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    draft.write_text(json.dumps(value, indent=1, allow_nan=False), encoding="utf-8")
    sync(draft)
    os.replace(draft, path)
    sync(path.parent)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        StoreCorrupt: the file is something else.
        FileNotFoundError: there is none.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise StoreCorrupt(f"{path.name} is not JSON") from error
    if not isinstance(value, dict):
        raise StoreCorrupt(f"{path.name} is not a JSON object")
    return value


def sync(path: Path) -> None:
    """fsync a file, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a file, made if need be; another thread's or process's claim on it counts too.

    The system gives it back when its holder dies.

    Args:
        wait: for whoever holds it; else the block is told False and holds nothing.
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
        os.close(descriptor)  # and gives the lock back
