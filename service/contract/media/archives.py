"""Check uploaded archives, folders and videos, and read them one picture or video at a time.

The gateway checks an upload with :func:`check_archive`; the worker reads it with :func:`iter_media` by the same rules.
Nothing is unpacked as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from service.contract.errors import BadFolder, BadPicture, BadSetting, EmptyArchive, TruncatedImage

from .archive_members import ArchiveLimits as ArchiveLimits
from .archive_members import Member as Member
from .archive_members import detect_kind, iter_members, message_of
from .pictures import EXPECTED as PICTURE_EXPECTED
from .videos import EXPECTED as VIDEO_EXPECTED

Mode = Literal["stills", "clips"]

_EXPECTED = f"{PICTURE_EXPECTED.replace(' a ', ' ')}s or {VIDEO_EXPECTED.removeprefix('expected an ')}s in it"


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


def check_archive(path: Path, limits: ArchiveLimits | None = None, mode: str = "auto") -> ArchiveSummary:
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
    for member in iter_members(path, kind, limits or ArchiveLimits()):
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
    path: Path, limits: ArchiveLimits | None = None, on_other: Callable[[Member], None] = lambda member: None
) -> Iterator[tuple[str, bytes | BadPicture | Member]]:
    """Yield the name of every picture and video, with the picture's bytes or the video.

    The order is the archive's (a folder's: sorted), so it is the same every time. A picture that can't be read comes
    with the error in place of bytes. A video can be read until the next item is requested. Hidden files and
    ``__MACOSX`` are skipped.

    Args:
        on_other: called with each visible file that has neither suffix.

    Raises:
        BadArchive: or a subclass, when the offending member is reached.
    """
    limits = limits or ArchiveLimits()
    for member in iter_members(path, detect_kind(path), limits):
        if member.is_video:
            yield member.name, member
        elif member.is_picture:
            yield member.name, _read_picture(member, limits)
        elif not member.is_hidden:
            on_other(member)


def _read_picture(member: Member, limits: ArchiveLimits) -> bytes | BadPicture:
    if member.size > limits.max_picture_bytes:
        return BadPicture(f"{member.size} bytes; at most {limits.max_picture_bytes} are read")
    try:
        return member.read()
    except Exception as error:  # noqa: BLE001  hostile bytes may make a reader raise anything
        return TruncatedImage(f"damaged in the archive ({message_of(error)})")
