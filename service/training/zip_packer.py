"""Pictures and videos sent one by one → one zip, written as they arrive."""

from __future__ import annotations

import zipfile
from collections import Counter
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO

from service.contract.errors import BodyTooLarge
from service.http.multipart import Part, Write

from .uploads import InThread

MOST_FILES = 10_000  # in one form; more go into an archive

_LONGEST_NAME = 200
_NAMELESS = "file"


class Packer:
    """A zip of files in the order in which they come. The same files in the same order make the same bytes.

    Args:
        path: where it shall be; its folder is there.
        in_thread: runs a blocking function.
        max_bytes: of all files together.

    Attributes:
        path: as given.
    """

    def __init__(self, path: Path, in_thread: InThread, max_bytes: int) -> None:
        self.path = path
        self._in_thread = in_thread
        self._max_bytes = max_bytes
        self._size = 0
        self._names: set[str] = set()
        self._numbers: Counter[str] = Counter()  # the last one tried for a name that came more than once
        self._zip: zipfile.ZipFile | None = None
        self._open: tuple[Part, IO[bytes]] | None = None

    @property
    def count(self) -> int:
        """Files in it so far."""
        return len(self._names)

    def sink(self, part: Part) -> Write:
        """Takes the bytes of one file of a form."""

        async def write(data: bytes) -> None:
            await self._in_thread(self._write, part, data)

        return write

    async def finish(self) -> None:
        """Complete the zip, if any file came."""
        await self._in_thread(self._finish)

    async def close(self) -> None:
        """Let go of the file, whatever state it is in."""

        def close() -> None:
            with suppress(OSError, ValueError):
                self._finish()

        await self._in_thread(close)

    def _write(self, part: Part, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._max_bytes:
            raise BodyTooLarge(f"the files in the field 'images' have more than {self._max_bytes} bytes together")
        if self._open is None or self._open[0] is not part:
            self._close_member()
            if self._zip is None:
                self._zip = zipfile.ZipFile(self.path, "x", zipfile.ZIP_STORED)
            # no time of its own, and room for any size, which is not known yet
            member = zipfile.ZipInfo(self._free_name(part.filename))
            self._open = part, self._zip.open(member, "w", force_zip64=True)
        self._open[1].write(data)

    def _close_member(self) -> None:
        if self._open is not None:
            member, self._open = self._open[1], None
            member.close()

    def _finish(self) -> None:
        try:
            self._close_member()
        finally:
            if self._zip is not None:
                archive, self._zip = self._zip, None
                archive.close()

    def _free_name(self, filename: str) -> str:
        """A name that no file has yet, and that leads nowhere but below the archive's folder."""
        plain = filename.replace("\\", "/").replace("\0", "").replace(":", "_")[-_LONGEST_NAME:]
        name = "/".join(part for part in plain.split("/") if part not in ("", ".", "..")) or _NAMELESS
        path, free = PurePosixPath(name), name
        while free in self._names:
            self._numbers[name] += 1
            free = str(path.with_name(f"{path.stem}-{self._numbers[name] + 1}{path.suffix}"))
        self._names.add(free)
        return free
