"""The limits on an archive, and a file that refuses reads beyond them, which hostile archives cause."""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from typing import IO

from service.contract.errors import ArchiveTooLarge, UnsafeArchive
from service.contract.settings import CommonSettings

KINDS_EXPECTED = "expected a zip, tar or tar.gz of pictures or videos, or one video"

COPY_BYTES = 2**20
_ZIP_ENTRY = b"PK\x01\x02"
# no header, name or directory of an honest archive is longer
_MAX_READ_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ArchiveLimits:
    """Limits on an archive or a folder."""

    max_files: int = 200_000
    max_unpacked_bytes: int = 16 * 2**30
    max_ratio: float = 200.0
    max_picture_bytes: int = 32 * 2**20

    @classmethod
    def of(cls, settings: CommonSettings) -> ArchiveLimits:
        """Return the configured limits."""
        return cls(
            settings.archive_max_files,
            settings.archive_max_unpacked_bytes,
            settings.archive_max_ratio,
            settings.image_max_bytes,
        )


class GuardedFile:
    """A binary file that refuses the reads by which a hostile archive exhausts the standard library.

    These are: one huge read (a name or directory of gigabytes), endless reading (decompression), and a zip directory
    of too many entries.
    """

    def __init__(self, file: IO[bytes], allowance: int, limits: ArchiveLimits) -> None:
        self._file = file
        self._allowance = allowance
        self._limits = limits
        self.last_read = b""

    def read(self, size: int = -1) -> bytes:
        max_bytes = max(_MAX_READ_BYTES, self._limits.max_picture_bytes)
        if size > max_bytes:
            raise UnsafeArchive(f"the archive has a header of {size} bytes; {KINDS_EXPECTED}")
        data = self._file.read(size) if size >= 0 else self._read_rest(max_bytes)
        self._check_position(self._file.tell())
        if data.count(_ZIP_ENTRY) > self._limits.max_files:
            raise too_many(self._limits)
        self.last_read = data
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET:
            if offset < 0:  # the OSError of seek would look like a fault of the disk
                raise ValueError(f"it names the position {offset}; expected 0 or more")
            self._check_position(offset)
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def _read_rest(self, max_bytes: int) -> bytes:
        """Read to the end in small pieces: a buffered file allocates as much as is requested."""
        parts = []
        while max_bytes > 0 and (part := self._file.read(min(max_bytes, COPY_BYTES))):
            parts.append(part)
            max_bytes -= len(part)
        return b"".join(parts)

    def _check_position(self, position: int) -> None:
        if isinstance(self._file, gzip.GzipFile) and position > self._allowance:
            raise too_large(self._allowance)


def too_many(limits: ArchiveLimits) -> ArchiveTooLarge:
    """Return the error of an upload of too many files."""
    return ArchiveTooLarge(f"the upload has too many files; at most {limits.max_files} are allowed, send fewer")


def too_large(allowance: int) -> ArchiveTooLarge:
    """Return the error of an archive that unpacks to too many bytes."""
    return ArchiveTooLarge(
        f"the archive unpacks to more than {allowance} bytes, the limit for one of its size; "
        "send fewer or smaller files"
    )
