"""Uploads written to a folder on the data root's disk, which is removed unless something takes the files over."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from service.contract.durable_files import folder_names, sync

InThread = Callable[..., Awaitable[Any]]

_STAGING = ".upload-"


class UploadFolder:
    """The files of one request. An async context manager that removes them at its end unless they are kept.

    Args:
        path: the folder; created with its first file.
        in_thread: runs a blocking function in a thread.
    """

    def __init__(self, path: Path, in_thread: InThread) -> None:
        self.path = path
        self._in_thread = in_thread
        self._files: list[UploadFile] = []
        self._kept = False

    @classmethod
    def create_in(cls, root: Path, in_thread: InThread) -> Self:
        """Return a new folder in `root`, on whose disk the files will be moved to their place."""
        return cls(root / f"{_STAGING}{uuid.uuid4().hex}", in_thread)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._in_thread(self._close)

    def file(self, name: str, max_bytes: int) -> UploadFile:
        """Return a file of the folder to write what arrives to."""
        self._files.append(UploadFile(self.path / name, self._in_thread, max_bytes))
        return self._files[-1]

    async def put(self, name: str, write: Callable[..., Any], *arguments: Any) -> None:
        """Create a file of the folder by `write(path, *arguments)`."""

        def put() -> None:
            self.path.mkdir(parents=True, exist_ok=True)
            write(self.path / name, *arguments)

        await self._in_thread(put)

    async def flush(self) -> None:
        """Make all bytes that arrived visible to other readers."""
        await self._in_thread(self._flush)

    async def sync(self) -> None:
        """Flush the files and fsync them and the folder, so that they outlive a power cut."""
        await self._in_thread(self._sync)

    def keep(self) -> None:
        """Leave the files where they are."""
        self._kept = True

    def _flush(self) -> None:
        for file in self._files:
            file.flush()

    def _sync(self) -> None:
        self._flush()
        if self.path.exists():
            for path in (*self.path.iterdir(), self.path):
                sync(path)

    def _close(self) -> None:
        try:
            for file in self._files:
                file.close()
        finally:
            if not self._kept:
                with suppress(FileNotFoundError):  # no file arrived, or the folder was moved to its place
                    shutil.rmtree(self.path)


class UploadFile:
    """A file that is created with its first bytes.

    Attributes:
        max_bytes: the reader of the request enforces it.
        name: the sender's name for it; empty if unknown.
    """

    def __init__(self, path: Path, in_thread: InThread, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.name = ""
        self._in_thread = in_thread
        self._file: IO[bytes] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no byte has arrived."""
        return self._file is None

    async def write(self, data: bytes) -> None:
        """Append bytes."""
        await self._in_thread(self._write, data)

    def flush(self) -> None:
        """Pass buffered bytes to the operating system."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Close the file if it was created."""
        if self._file is not None:
            self._file.close()

    def _write(self, data: bytes) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("xb")
        self._file.write(data)


def remove_stale_uploads(root: Path, stale_s: float) -> list[str]:
    """Remove the upload folders that a killed gateway left in `root`, once untouched for `stale_s`.

    Returns:
        Their names.
    """
    names = [
        name
        for name in folder_names(root)
        if name.startswith(_STAGING) and seconds_since_change(root / name) >= stale_s
    ]
    for name in names:
        shutil.rmtree(root / name, ignore_errors=True)
    return names


def seconds_since_change(folder: Path) -> float:
    """Return the seconds since anything in a folder was written; 0 if it is changing right now."""
    try:
        return time.time() - max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
    except FileNotFoundError:
        return 0.0
