"""The files of a training request on their way to disk: there for the job, or gone again without a trace."""

from __future__ import annotations

import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, Any

from service.contract.errors import BadLabels
from service.contract.jobs.files import MAX_LABELS_BYTES, JobFiles
from service.contract.jobs.store import new_job_id
from service.contract.versions.store import write_json

InThread = Callable[..., Awaitable[Any]]


class Intake:
    """The files of one request; they are gone in the end unless a job owns them.

    Args:
        in_thread: runs a blocking function.
        max_archive_bytes: of the archive.

    Attributes:
        job_id: of the job that may come of it.
    """

    def __init__(self, files: JobFiles, in_thread: InThread, max_archive_bytes: int) -> None:
        self.job_id = new_job_id()
        self._files = files
        self._in_thread = in_thread
        self._owned = False
        self.archive = UploadFile(files, self.job_id, files.archive(self.job_id), in_thread, max_archive_bytes)
        self.labels = UploadFile(files, self.job_id, files.labels(self.job_id), in_thread, MAX_LABELS_BYTES)

    async def put_prior(self, document: dict[str, Any]) -> None:
        """Lay down the prior that the job starts from."""

        def put() -> None:
            self._files.create(self.job_id)
            write_json(self._files.prior(self.job_id), document)

        await self._in_thread(put)

    async def copy_labels(self, source: Path) -> None:
        """Take labels that lie on the server already, as they are now.

        Raises:
            BadLabels: an empty file, or one that is too long.
        """

        def copy() -> None:
            size = source.stat().st_size
            if not 0 < size <= MAX_LABELS_BYTES:
                raise BadLabels(f"the labels have {size} bytes; from 1 to {MAX_LABELS_BYTES} are allowed")
            self._files.create(self.job_id)
            shutil.copyfile(source, self._files.labels(self.job_id))

        await self._in_thread(copy)

    async def link(self, archive: Path, labels: Path | None) -> None:
        """Take an archive, and labels, that lie on the server already and never change.

        They become further names of the same bytes: no room is taken, and the job keeps them whatever becomes of
        the others. Where the disk knows no such names, they are copied.

        Raises:
            FileNotFoundError: they have gone.
        """

        def link() -> None:
            self._files.create(self.job_id)
            for source, to in ((archive, self.archive.path), (labels, self.labels.path)):
                if source is not None:
                    _link(source, to)

        await self._in_thread(link)

    async def link_start(self, weights: Path) -> None:
        """Take the weights that training goes on from: the job keeps them, whatever becomes of their version.

        Raises:
            FileNotFoundError: they have gone.
        """

        def link() -> None:
            self._files.create(self.job_id)
            _link(weights, self._files.start(self.job_id))

        await self._in_thread(link)

    async def flush(self) -> None:
        """Let others read what came so far."""
        for upload in (self.archive, self.labels):
            await self._in_thread(upload.flush)

    async def sync(self) -> None:
        """Have it all on the disk: the job must not outlive its files."""
        await self._in_thread(self._sync)

    def hand_over(self) -> None:
        """A job owns the files now."""
        self._owned = True

    async def close(self) -> None:
        """Close the files, and remove them unless a job owns them."""
        await self._in_thread(self._close)

    def _sync(self) -> None:
        folder = self._files.folder(self.job_id)
        if not folder.exists():
            return
        for upload in (self.archive, self.labels):
            upload.flush()
        for path in (*folder.iterdir(), folder):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _close(self) -> None:
        try:
            for upload in (self.archive, self.labels):
                upload.close()
        finally:
            if not self._owned:
                self._files.remove(self.job_id)


def _link(source: Path, to: Path) -> None:
    """A further name of a file that never changes; a copy where the disk knows no such names."""
    try:
        os.link(source, to)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, to)


class UploadFile:
    """A file that appears with its first bytes.

    Attributes:
        path: where it is.
        max_bytes: how long it may be; whoever writes looks.
        name: as its sender calls it; empty where nobody said.
    """

    def __init__(self, files: JobFiles, job_id: str, path: Path, in_thread: InThread, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.name = ""
        self._files = files
        self._job_id = job_id
        self._in_thread = in_thread
        self._file: IO[bytes] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no byte came."""
        return self._file is None

    async def write(self, data: bytes) -> None:
        """Append."""
        await self._in_thread(self._write, data)

    def flush(self) -> None:
        """Hand all that came to the system."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Close it, if it was opened."""
        if self._file is not None:
            self._file.close()

    def _write(self, data: bytes) -> None:
        if self._file is None:
            self._files.create(self._job_id)
            self._file = self.path.open("xb")
        self._file.write(data)
