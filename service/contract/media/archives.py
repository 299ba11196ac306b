"""Check uploaded archives, folders and videos, and read them one picture or video at a time.

:func:`check_archive` (gateway) and :func:`iter_media` (worker) follow the same rules. Nothing is unpacked as a whole.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, cast

from service.contract.errors import (
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

from . import Mode, tiff
from .archive_guard import COPY_BYTES, KINDS_EXPECTED, GuardedFile, too_large, too_many
from .archive_guard import ArchiveLimits as ArchiveLimits
from .pictures import EXPECTED as PICTURE_EXPECTED
from .pictures import TIFF_SUFFIXES, PictureLimits, is_picture_name, open_reduced
from .video_kinds import EXPECTED as VIDEO_EXPECTED
from .video_kinds import HEAD_BYTES, is_video, is_video_name
from .zip_names import decode_name, replace_surrogates

_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ZIP_ENCRYPTED = 0x1 | 0x40
_GZIP_START = b"\x1f\x8b"
# below this unpacked size any compression ratio is allowed: drawings compress well
_RATIO_FROM_BYTES = 64 * 2**20
_TIFFS_LOOKED_AT = 3
_PNG_HEAD_BYTES = 26
_PNG_DEPTH = 24  # byte with the bits a channel
_BARE_VIDEO = "video"  # the member name of an upload that is a video itself
_EXPECTED = f"{PICTURE_EXPECTED.replace(' a ', ' ')}s or {VIDEO_EXPECTED.removeprefix('expected an ')}s in it"


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
    def is_tiff(self) -> bool:
        """Whether its suffix is a TIFF's and it is not hidden."""
        return self.is_picture and Path(self.name).suffix.lower() in TIFF_SUFFIXES

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
            while copied < self.size and (part := file.read(min(COPY_BYTES, self.size - copied))):
                copied += out.write(part)
        if copied != self.size:
            raise EOFError("it ends early")


def detect_kind(path: Path) -> str:
    """Return an upload's kind: folder, zip, tar, tar.gz or video. Raises BadArchive if it is none."""
    if path.is_dir():
        return "folder"
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise BadArchive(f"the archive is empty; {KINDS_EXPECTED}")
    if head.startswith(_ZIP_STARTS):
        return "zip"
    if is_video(head) or head.startswith(tiff.STARTS):
        return "video"
    return "tar.gz" if head.startswith(_GZIP_START) else "tar"


def iter_members(path: Path, kind: str, limits: ArchiveLimits) -> Generator[Member]:
    """Yield the files of an upload, each checked.

    Args:
        kind: kind from :func:`detect_kind`.

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
            yield from _check_totals(reader(GuardedFile(packed, allowance, limits)), limits, allowance)
        except PPLError:
            raise
        except Exception as error:  # hostile bytes may make a reader raise anything
            raise BadArchive(f"not an archive, or damaged ({message_of(error)}); {KINDS_EXPECTED}") from error


def _check_totals(members: Iterator[Member], limits: ArchiveLimits, allowance: int) -> Iterator[Member]:
    unpacked_bytes = 0
    for count, member in enumerate(members, start=1):
        if count > limits.max_files:
            raise too_many(limits)
        unpacked_bytes += member.size
        if unpacked_bytes > allowance:
            raise too_large(allowance)
        yield member


def _zip_members(file: GuardedFile) -> Iterator[Member]:
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


def _tar_members(file: GuardedFile) -> Iterator[Member]:
    with tarfile.open(fileobj=cast(IO[bytes], file), mode="r:") as archive:
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # or it keeps a record of every member
            _check_name(info.name)
            if info.isdir():
                continue
            if not info.isfile() or info.issparse():
                raise _unsafe_error(info.name, "is a link, a device or sparse")
            opener = cast(Callable[[], IO[bytes]], partial(archive.extractfile, info))  # not None, as it is a file
            yield Member(replace_surrogates(info.name), info.size, opener)
        if file.last_read.strip(b"\0"):  # tarfile ends at a damaged header without an error
            raise BadArchive(f"the archive is damaged after its first files; {KINDS_EXPECTED}")


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
            yield Member(
                replace_surrogates(file.relative_to(path).as_posix()), file.stat().st_size, partial(_open, file), file
            )


def _check_name(name: str) -> None:
    plain = name.replace("\\", "/")
    if "\0" in name or plain.startswith("/") or re.match(r"[A-Za-z]:", plain) or ".." in plain.split("/"):
        raise _unsafe_error(name, "leads out of the archive's folder")


def _unsafe_error(name: str, why: str) -> UnsafeArchive:
    return UnsafeArchive(f"{_quote(name)} in the archive {why}; pack plain files under relative names")


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

    Of a zip the directory is read, and the first TIFFs, which may be stacks; a tar.gz is decompressed once, within the
    limits.

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
    looked_at, stacked = 0, False  # few are opened: those of an upload are alike
    for member in iter_members(path, kind, limits):
        if member.is_tiff and looked_at < _TIFFS_LOOKED_AT:
            looked_at, stacked = looked_at + 1, is_stack(member, limits)
        is_clip = member.is_video or (member.is_tiff and stacked)
        pictures += member.is_picture and not is_clip
        videos += is_clip
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
    """Yield the name of every picture and video, with the picture's bytes or the video. A stack counts as a video.

    The order is the archive's (a folder's: sorted), so it is the same every time. A picture that can't be read comes
    with the error in place of bytes. A video can be read until the next item is requested. Hidden files and
    ``__MACOSX`` are skipped.

    Args:
        on_other: called with each visible file that has neither a picture's nor a video's suffix.

    Raises:
        BadArchive: or a subclass, when the offending member is reached.
    """
    for member in iter_members(path, detect_kind(path), limits):
        if member.is_video or (member.is_tiff and member.size > limits.max_picture_bytes):
            yield member.name, member
        elif member.is_picture:
            data = read_bounded(member, limits)
            if member.is_tiff and isinstance(data, bytes) and tiff.is_stack(io.BytesIO(data)):
                yield member.name, replace(member, open=partial(io.BytesIO, data))  # a tar.gz is not read twice
            else:
                yield member.name, data
        elif not member.is_hidden:
            on_other(member)


def is_stack(member: Member, limits: ArchiveLimits) -> bool:
    """Return whether a file is a TIFF of several pictures, by its pages; one too large for a picture counts as such."""
    if not member.is_tiff or member.size > limits.max_picture_bytes:
        return member.is_tiff
    data = read_bounded(member, limits)
    return isinstance(data, bytes) and tiff.is_stack(io.BytesIO(data))


def find_white(
    path: Path, archive_limits: ArchiveLimits, limits: PictureLimits, check: Callable[[], None] = lambda: None
) -> float:
    """Return the value that is white in an upload's pictures of more than 8 bits; 0 if it has none.

    What cannot be read is passed over: it is named when its turn comes.
    """
    white = 0.0
    with suppress(BadArchive):
        for member in iter_members(path, detect_kind(path), archive_limits):
            check()
            is_png = member.is_picture and member.name.lower().endswith(".png")
            if not (is_png or member.is_tiff) or member.size > limits.max_bytes:
                continue
            # hostile bytes may make a reader raise anything
            with suppress(Exception), member.open() as file:
                data = file.read(_PNG_HEAD_BYTES)
                if member.is_tiff or data[_PNG_DEPTH] == 16:
                    data += file.read(member.size - len(data))
                    white = max(white, open_reduced(data, lambda *_: 1, limits).white)
    return white


def read_bounded(member: Member, limits: ArchiveLimits) -> bytes | BadPicture:
    """Return a picture's bytes, or why they can't be read: it is too large, or damaged."""
    if member.size > limits.max_picture_bytes:
        return BadPicture(
            f"the picture has {member.size} bytes; at most {limits.max_picture_bytes} are allowed, scale it down"
        )
    try:
        return member.read()
    except Exception as error:  # noqa: BLE001  hostile bytes may make a reader raise anything
        return TruncatedImage(f"damaged in the archive ({message_of(error)})")
