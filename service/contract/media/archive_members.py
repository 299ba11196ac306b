"""The files in an upload, one after the other, as bytes or as a stream; hostile archives are refused on the way."""

from __future__ import annotations

import gzip
import os
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, cast

from service.contract.errors import ArchiveTooLarge, BadArchive, EncryptedArchive, PPLError, UnsafeArchive
from service.contract.settings import CommonSettings

from .pictures import is_picture_name
from .videos import is_video, is_video_name

_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
_ZIP_ENTRY = b"PK\x01\x02"
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ZIP_ENCRYPTED = 0x1 | 0x40
_GZIP_START = b"\x1f\x8b"
# an archive that unpacks to less than this may shrink as much as it likes: drawn pictures do
_RATIO_FROM_BYTES = 64 * 2**20
# no header, name or directory of an honest archive is longer
_LONGEST_READ_BYTES = 64 * 2**20
_COPIED_BYTES = 2**20
_BARE_VIDEO = "video"  # the name of an upload that is one
_KINDS_EXPECTED = "expected a zip, tar or tar.gz of pictures or videos, or one video"


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive or a folder may hold."""

    max_files: int = 200_000
    max_unpacked_bytes: int = 16 * 2**30
    max_ratio: float = 200.0
    max_picture_bytes: int = 32 * 2**20

    @classmethod
    def of(cls, settings: CommonSettings) -> ArchiveLimits:
        """The limits as set."""
        return cls(
            settings.archive_max_files,
            settings.archive_max_unpacked_bytes,
            settings.archive_max_ratio,
            settings.image_max_bytes,
        )


@dataclass(frozen=True)
class Member:
    """A file in an upload.

    Attributes:
        name: its path there.
        open: a stream of its bytes; it works until the next member is asked for.
        path: where it lies by itself; None inside of an archive.
        bare_video: it is the whole upload, whose name nobody knows.
    """

    name: str
    size: int
    open: Callable[[], IO[bytes]]
    path: Path | None = None
    bare_video: bool = False

    @property
    def is_picture(self) -> bool:
        """Whether it is named as a picture, and not hidden."""
        return is_picture_name(self.name) and not self.is_hidden

    @property
    def is_video(self) -> bool:
        """Whether it is named as a video, and not hidden."""
        return self.bare_video or (is_video_name(self.name) and not self.is_hidden)

    @property
    def is_hidden(self) -> bool:
        """Whether it is hidden, or what a Mac adds to an archive."""
        parts = PurePosixPath(self.name.replace("\\", "/")).parts
        return any(part.startswith(".") or part == "__MACOSX" for part in parts)

    def read(self) -> bytes:
        """All of its bytes. Raises whatever a damaged archive makes its reader raise."""
        with self.open() as file:
            data = file.read(self.size)
        if len(data) != self.size:
            raise EOFError("it ends early")
        return data

    def copy(self, to: Path) -> None:
        """Its bytes into a file, a little at a time. Raises as :meth:`read`, and OSError where there is no room."""
        copied = 0
        with self.open() as file, to.open("wb") as out:
            while copied < self.size and (part := file.read(min(_COPIED_BYTES, self.size - copied))):
                copied += out.write(part)
        if copied != self.size:
            raise EOFError("it ends early")


def kind_of(path: Path) -> str:
    """What an upload is: folder, zip, tar, tar.gz or video. Raises BadArchive for an empty file."""
    if path.is_dir():
        return "folder"
    with path.open("rb") as file:
        head = file.read(12)
    if not head:
        raise BadArchive(f"the archive is empty; {_KINDS_EXPECTED}")
    if head.startswith(_ZIP_STARTS):
        return "zip"
    if is_video(head):
        return "video"
    return "tar.gz" if head.startswith(_GZIP_START) else "tar"


def members(path: Path, kind: str, limits: ArchiveLimits) -> Generator[Member]:
    """The files of an archive or folder, each checked; raises as check_archive does.

    Args:
        kind: as :func:`kind_of` says.
    """
    if kind == "video":
        yield Member(_BARE_VIDEO, path.stat().st_size, partial(_open, path), path, bare_video=True)
        return
    if kind == "folder":
        yield from _counted(_folder_members(path), limits, limits.max_unpacked_bytes)
        return
    allowance = int(min(limits.max_unpacked_bytes, max(_RATIO_FROM_BYTES, limits.max_ratio * path.stat().st_size)))
    reader = _zip_members if kind == "zip" else _tar_members
    with path.open("rb") as file:
        try:
            packed = cast(IO[bytes], gzip.GzipFile(fileobj=file)) if kind == "tar.gz" else file
            yield from _counted(reader(_Guarded(packed, allowance, limits)), limits, allowance)
        except PPLError:
            raise
        except Exception as error:  # hostile bytes may make a reader raise anything
            raise BadArchive(f"not an archive, or damaged ({reason_of(error)}); {_KINDS_EXPECTED}") from error


def _counted(members: Iterator[Member], limits: ArchiveLimits, allowance: int) -> Iterator[Member]:
    unpacked_bytes = 0
    for count, member in enumerate(members, start=1):
        if count > limits.max_files:
            raise _too_many(limits)
        unpacked_bytes += member.size
        if unpacked_bytes > allowance:
            raise _too_large(allowance)
        yield member


def _zip_members(file: _Guarded) -> Iterator[Member]:
    with zipfile.ZipFile(cast(IO[bytes], file)) as archive:
        for info in archive.infolist():
            _check_name(info.orig_filename)
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _unsafe(info.filename, "is a link or a device")
            if info.is_dir():
                continue
            if info.flag_bits & _ZIP_ENCRYPTED:
                raise EncryptedArchive(f"{_shown(info.filename)} is encrypted; pack it without a password")
            if info.compress_type not in _ZIP_METHODS:
                raise BadArchive(f"{_shown(info.filename)} is packed by a method other than store and deflate")
            yield Member(info.filename, info.file_size, partial(archive.open, info))


def _tar_members(file: _Guarded) -> Iterator[Member]:
    with tarfile.open(fileobj=cast(IO[bytes], file), mode="r:") as archive:
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # else it keeps a record of every member it passed
            _check_name(info.name)
            if info.isdir():
                continue
            if not info.isfile() or info.issparse():
                raise _unsafe(info.name, "is a link, a device or sparse")
            yield Member(info.name, info.size, partial(_tar_open, archive, info))
        if file.last_read.strip(b"\0"):  # tarfile takes a damaged header for the end
            raise BadArchive(f"the archive is damaged after its first files; {_KINDS_EXPECTED}")


def _tar_open(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(info)
    assert file is not None  # it is a plain file
    return file


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def _folder_members(path: Path) -> Iterator[Member]:
    """The files below a folder in sorted order; links are passed over."""
    for folder, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(files):
            file = Path(folder) / name
            if file.is_symlink() or not file.is_file():
                continue
            yield Member(file.relative_to(path).as_posix(), file.stat().st_size, partial(_open, file), file)


class _Guarded:
    """A binary file that refuses what a hostile archive makes the standard library do.

    That is: one huge read (a name or a directory of gigabytes), reading on and on (decompression),
    and a zip directory of more entries than are allowed.
    """

    def __init__(self, file: IO[bytes], allowance: int, limits: ArchiveLimits) -> None:
        self._file = file
        self._allowance = allowance
        self._limits = limits
        self.last_read = b""

    def read(self, size: int = -1) -> bytes:
        longest = max(_LONGEST_READ_BYTES, self._limits.max_picture_bytes)
        if size > longest:
            raise UnsafeArchive(f"the archive has a header of {size} bytes; {_KINDS_EXPECTED}")
        data = self._file.read(size) if size >= 0 else self._rest(longest)
        self._check_position(self._file.tell())
        if data.count(_ZIP_ENTRY) > self._limits.max_files:
            raise _too_many(self._limits)
        self.last_read = data
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET:
            self._check_position(offset)
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def _rest(self, most: int) -> bytes:
        """What is left, a little at a time: a buffered file takes room for as much as it is asked for."""
        parts = []
        while most > 0 and (part := self._file.read(min(most, _COPIED_BYTES))):
            parts.append(part)
            most -= len(part)
        return b"".join(parts)

    def _check_position(self, position: int) -> None:
        if isinstance(self._file, gzip.GzipFile) and position > self._allowance:
            raise _too_large(self._allowance)


def _check_name(name: str) -> None:
    plain = name.replace("\\", "/")
    if "\0" in name or plain.startswith("/") or re.match(r"[A-Za-z]:", plain) or ".." in plain.split("/"):
        raise _unsafe(name, "leads out of the archive's folder")


def _unsafe(name: str, why: str) -> UnsafeArchive:
    return UnsafeArchive(f"{_shown(name)} in the archive {why}; pack plain files under relative names")


def _too_many(limits: ArchiveLimits) -> ArchiveTooLarge:
    return ArchiveTooLarge(f"more than {limits.max_files} files; send at most {limits.max_files}")


def _too_large(allowance: int) -> ArchiveTooLarge:
    return ArchiveTooLarge(
        f"the archive unpacks to more than {allowance} bytes, the most that is allowed for one of its size; "
        "send fewer or smaller files"
    )


def reason_of(error: Exception) -> str:
    """What an error says, or its kind where it says nothing."""
    return str(error) or type(error).__name__


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:77] + "...")
