"""Check uploaded archives, folders and videos, and read them one picture or video at a time.

:func:`check_archive` (gateway) and :func:`iter_media` (worker) follow the same rules. Nothing is unpacked as a whole.
"""

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
from typing import IO, Literal, cast

from service.contract.errors import (
    ArchiveTooLarge,
    BadArchive,
    BadFolder,
    BadPicture,
    BadSetting,
    EmptyArchive,
    EncryptedArchive,
    PPLError,
    TruncatedImage,
    UnsafeArchive,
)
from service.contract.settings import CommonSettings

from .pictures import EXPECTED as PICTURE_EXPECTED
from .pictures import is_picture_name
from .videos import EXPECTED as VIDEO_EXPECTED
from .videos import is_video, is_video_name
from .zip_names import decode_name

_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
_ZIP_ENTRY = b"PK\x01\x02"
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ZIP_ENCRYPTED = 0x1 | 0x40
_GZIP_START = b"\x1f\x8b"
# below this unpacked size any compression ratio is allowed: drawings compress well
_RATIO_FROM_BYTES = 64 * 2**20
# no header, name or directory of an honest archive is longer
_MAX_READ_BYTES = 64 * 2**20
_COPY_BYTES = 2**20
_BARE_VIDEO = "video"  # the member name of an upload that is a video itself
_KINDS_EXPECTED = "expected a zip, tar or tar.gz of pictures or videos, or one video"
Mode = Literal["stills", "clips"]
_EXPECTED = f"{PICTURE_EXPECTED.replace(' a ', ' ')}s or {VIDEO_EXPECTED.removeprefix('expected an ')}s in it"


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


@dataclass(frozen=True)
class Member:
    """A file in an upload.

    Attributes:
        name: its path in the upload.
        open: opens a stream of its bytes, valid until the next member is requested.
        path: the file itself; None inside an archive.
        bare_video: whether it is the whole upload, whose file name is unknown.
    """

    name: str
    size: int
    open: Callable[[], IO[bytes]]
    path: Path | None = None
    bare_video: bool = False

    @property
    def is_picture(self) -> bool:
        """Whether its suffix is a picture's and it is not hidden."""
        return is_picture_name(self.name) and not self.is_hidden

    @property
    def is_video(self) -> bool:
        """Whether its suffix is a video's and it is not hidden."""
        return self.bare_video or (is_video_name(self.name) and not self.is_hidden)

    @property
    def is_hidden(self) -> bool:
        """Whether it is hidden, or metadata that macOS adds to archives."""
        parts = PurePosixPath(self.name.replace("\\", "/")).parts
        return any(part.startswith(".") or part == "__MACOSX" for part in parts)

    def read(self) -> bytes:
        """Return its bytes. Raises anything the reader of a damaged archive raises."""
        with self.open() as file:
            data = file.read(self.size)
        if len(data) != self.size:
            raise EOFError("it ends early")
        return data

    def copy(self, to: Path) -> None:
        """Copy it to a file in small pieces. Raises the errors of :meth:`read`, and OSError if the disk is full."""
        copied = 0
        with self.open() as file, to.open("wb") as out:
            while copied < self.size and (part := file.read(min(_COPY_BYTES, self.size - copied))):
                copied += out.write(part)
        if copied != self.size:
            raise EOFError("it ends early")


def detect_kind(path: Path) -> str:
    """Return an upload's kind: folder, zip, tar, tar.gz or video. Raises BadArchive for an empty file."""
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


def iter_members(path: Path, kind: str, limits: ArchiveLimits) -> Generator[Member]:
    """Yield the files of an upload, each checked.

    Args:
        kind: from :func:`detect_kind`.

    Raises:
        BadArchive: or a subclass; see :func:`check_archive`.
    """
    if kind == "video":
        yield Member(_BARE_VIDEO, path.stat().st_size, partial(_open, path), path, bare_video=True)
        return
    if kind == "folder":
        yield from _check_totals(_folder_members(path), limits, limits.max_unpacked_bytes)
        return
    allowance = int(min(limits.max_unpacked_bytes, max(_RATIO_FROM_BYTES, limits.max_ratio * path.stat().st_size)))
    reader = _zip_members if kind == "zip" else _tar_members
    with path.open("rb") as file:
        try:
            packed = cast(IO[bytes], gzip.GzipFile(fileobj=file)) if kind == "tar.gz" else file
            yield from _check_totals(reader(_GuardedFile(packed, allowance, limits)), limits, allowance)
        except PPLError:
            raise
        except Exception as error:  # hostile bytes may make a reader raise anything
            raise BadArchive(f"not an archive, or damaged ({message_of(error)}); {_KINDS_EXPECTED}") from error


def _check_totals(members: Iterator[Member], limits: ArchiveLimits, allowance: int) -> Iterator[Member]:
    unpacked_bytes = 0
    for count, member in enumerate(members, start=1):
        if count > limits.max_files:
            raise _too_many(limits)
        unpacked_bytes += member.size
        if unpacked_bytes > allowance:
            raise _too_large(allowance)
        yield member


def _zip_members(file: _GuardedFile) -> Iterator[Member]:
    with zipfile.ZipFile(cast(IO[bytes], file)) as archive:
        for info in archive.infolist():
            name = decode_name(info)
            _check_name(info.orig_filename)
            _check_name(name)
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _unsafe_error(name, "is a link or a device")
            if info.is_dir():
                continue
            if info.flag_bits & _ZIP_ENCRYPTED:
                raise EncryptedArchive(f"{_quote(name)} is encrypted; pack it without a password")
            if info.compress_type not in _ZIP_METHODS:
                raise BadArchive(
                    f"{_quote(name)} is neither stored nor deflated; pack it again with one of these methods"
                )
            yield Member(name, info.file_size, partial(archive.open, info))


def _tar_members(file: _GuardedFile) -> Iterator[Member]:
    with tarfile.open(fileobj=cast(IO[bytes], file), mode="r:") as archive:
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # or it keeps a record of every member
            _check_name(info.name)
            if info.isdir():
                continue
            if not info.isfile() or info.issparse():
                raise _unsafe_error(info.name, "is a link, a device or sparse")
            opener = cast(Callable[[], IO[bytes]], partial(archive.extractfile, info))  # not None, as it is a file
            yield Member(info.name, info.size, opener)
        if file.last_read.strip(b"\0"):  # tarfile ends at a damaged header without an error
            raise BadArchive(f"the archive is damaged after its first files; {_KINDS_EXPECTED}")


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def _folder_members(path: Path) -> Iterator[Member]:
    """Yield the files below a folder in sorted order, without links."""
    for folder, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(files):
            file = Path(folder) / name
            if file.is_symlink() or not file.is_file():
                continue
            yield Member(file.relative_to(path).as_posix(), file.stat().st_size, partial(_open, file), file)


class _GuardedFile:
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
            raise UnsafeArchive(f"the archive has a header of {size} bytes; {_KINDS_EXPECTED}")
        data = self._file.read(size) if size >= 0 else self._read_rest(max_bytes)
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

    def _read_rest(self, max_bytes: int) -> bytes:
        """Read to the end in small pieces: a buffered file allocates as much as is requested."""
        parts = []
        while max_bytes > 0 and (part := self._file.read(min(max_bytes, _COPY_BYTES))):
            parts.append(part)
            max_bytes -= len(part)
        return b"".join(parts)

    def _check_position(self, position: int) -> None:
        if isinstance(self._file, gzip.GzipFile) and position > self._allowance:
            raise _too_large(self._allowance)


def _check_name(name: str) -> None:
    plain = name.replace("\\", "/")
    if "\0" in name or plain.startswith("/") or re.match(r"[A-Za-z]:", plain) or ".." in plain.split("/"):
        raise _unsafe_error(name, "leads out of the archive's folder")


def _unsafe_error(name: str, why: str) -> UnsafeArchive:
    return UnsafeArchive(f"{_quote(name)} in the archive {why}; pack plain files under relative names")


def _too_many(limits: ArchiveLimits) -> ArchiveTooLarge:
    return ArchiveTooLarge(f"the upload has too many files; at most {limits.max_files} are allowed, send fewer")


def _too_large(allowance: int) -> ArchiveTooLarge:
    return ArchiveTooLarge(
        f"the archive unpacks to more than {allowance} bytes, the limit for one of its size; "
        "send fewer or smaller files"
    )


def message_of(error: Exception) -> str:
    return str(error) or type(error).__name__


def _quote(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:77] + "...")


@dataclass(frozen=True)
class ArchiveSummary:
    """The contents of an upload.

    Attributes:
        kind: zip, tar, tar.gz, folder or video.
        pictures, videos: number of files with such suffixes.
        mode: how training uses them.
    """

    kind: str
    pictures: int
    videos: int
    unpacked_bytes: int
    mode: Mode


def check_archive(path: Path, limits: ArchiveLimits = ArchiveLimits(), mode: str = "auto") -> ArchiveSummary:
    """Check an upload or folder: that it is safe, within the limits, and holds pictures or videos.

    Of a zip only the directory is read; a tar.gz is decompressed once, within the limits.

    Args:
        mode: the setting of that name.

    Raises:
        BadArchive: not a zip, tar, tar.gz or video, or damaged.
        UnsafeArchive: a member leads out of the archive's folder, is a link or a device.
        EncryptedArchive, ArchiveTooLarge, EmptyArchive.
        BadFolder: a folder without a picture or video, or no folder.
        BadSetting: pictures and videos, and ``mode`` is "auto".
    """
    kind = detect_kind(path)
    pictures = videos = unpacked_bytes = 0
    for member in iter_members(path, kind, limits):
        pictures += member.is_picture
        videos += member.is_video
        unpacked_bytes += member.size
    if not pictures + videos:
        problem = f"holds no file with the suffix of a picture or a video; {_EXPECTED}"
        if kind == "folder":
            raise BadFolder(f"the folder {problem}")
        raise EmptyArchive(f"the archive {problem}, in folders or not")
    return ArchiveSummary(kind, pictures, videos, unpacked_bytes, resolve_mode(mode, pictures, videos))


def resolve_mode(mode: str, pictures: int, videos: int) -> Mode:
    """Resolve "auto" to "clips" for videos and "stills" for pictures. Raises BadSetting if there are both."""
    if mode == "clips" or mode == "stills":
        return "clips" if mode == "clips" else "stills"
    if pictures and videos:
        raise BadSetting(
            f"mode is auto and the upload has {pictures} pictures and {videos} videos; set mode to clips (each video "
            "and each folder of pictures is a clip) or to stills (pictures and frames are independent)",
            extra={"field": "mode"},
        )
    return "clips" if videos else "stills"


def iter_media(
    path: Path, limits: ArchiveLimits = ArchiveLimits(), on_other: Callable[[Member], None] = lambda member: None
) -> Iterator[tuple[str, bytes | BadPicture | Member]]:
    """Yield the name of every picture and video, with the picture's bytes or the video.

    The order is the archive's (a folder's: sorted), so it is the same every time. A picture that can't be read comes
    with the error in place of bytes. A video can be read until the next item is requested. Hidden files and
    ``__MACOSX`` are skipped.

    Args:
        on_other: called with each visible file that has neither a picture's nor a video's suffix.

    Raises:
        BadArchive: or a subclass, when the offending member is reached.
    """
    for member in iter_members(path, detect_kind(path), limits):
        if member.is_video:
            yield member.name, member
        elif member.is_picture:
            yield member.name, _read_picture(member, limits)
        elif not member.is_hidden:
            on_other(member)


def _read_picture(member: Member, limits: ArchiveLimits) -> bytes | BadPicture:
    if member.size > limits.max_picture_bytes:
        return BadPicture(
            f"the picture has {member.size} bytes; at most {limits.max_picture_bytes} are allowed, scale it down"
        )
    try:
        return member.read()
    except Exception as error:  # noqa: BLE001  hostile bytes may make a reader raise anything
        return TruncatedImage(f"damaged in the archive ({message_of(error)})")
