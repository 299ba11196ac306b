"""Uploaded archives, folders and videos: checked at the door, then read one picture or video at a time.

Nothing is ever unpacked as a whole. The gateway checks an upload (:func:`check_archive`) and
refuses one that is unsafe, too large or without anything to learn from; the worker reads its
pictures and videos (:func:`iter_media`) by the same rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from service.contract.errors import BadFolder, BadPicture, BadSetting, EmptyArchive, TruncatedImage

from .archive_members import ArchiveLimits as ArchiveLimits
from .archive_members import Member as Member
from .archive_members import kind_of, members, reason_of
from .pictures import EXPECTED as PICTURE_EXPECTED
from .videos import EXPECTED as VIDEO_EXPECTED

Mode = Literal["stills", "clips"]

_EXPECTED = f"{PICTURE_EXPECTED.replace(' a ', ' ')}s or {VIDEO_EXPECTED.removeprefix('expected an ')}s in it"


@dataclass(frozen=True)
class ArchiveSummary:
    """What :func:`check_archive` found.

    Attributes:
        kind: zip, tar, tar.gz, folder or video.
        pictures, videos: files named as such.
        mode: what the training takes them for.
    """

    kind: str
    pictures: int
    videos: int
    unpacked_bytes: int
    mode: Mode


def check_archive(path: Path, limits: ArchiveLimits | None = None, mode: str = "auto") -> ArchiveSummary:
    """Refuse an upload (or a folder) that must not or need not be read.

    A zip is judged by its directory; a tar.gz has to be decompressed once, within the limits.

    Args:
        mode: the setting of that name.

    Raises:
        BadArchive: not a zip, tar, tar.gz or video, or damaged.
        UnsafeArchive: a member leads out of the archive's folder, is a link or a device.
        EncryptedArchive, ArchiveTooLarge, EmptyArchive: as they say.
        BadFolder: a folder without a picture or video, or no folder.
        BadSetting: pictures and videos, and ``mode`` does not say what they are.
    """
    kind = kind_of(path)
    pictures = videos = unpacked_bytes = 0
    for member in members(path, kind, limits or ArchiveLimits()):
        pictures += member.is_picture
        videos += member.is_video
        unpacked_bytes += member.size
    if not pictures + videos:
        said = f"holds no file named as a picture or a video; {_EXPECTED}"
        if kind == "folder":
            raise BadFolder(f"the folder {said}")
        raise EmptyArchive(f"the archive {said}, in folders or not")
    return ArchiveSummary(kind, pictures, videos, unpacked_bytes, mode_of(mode, pictures, videos))


def mode_of(mode: str, pictures: int, videos: int) -> Mode:
    """What an upload is taken for: videos are clips and pictures are stills, unless the setting says otherwise.

    Args:
        mode: "auto", "stills" or "clips".
        pictures, videos: how many it holds, of one kind at least.

    Raises:
        BadSetting: both, and the setting is "auto".
    """
    if mode == "clips" or mode == "stills":
        return "clips" if mode == "clips" else "stills"
    if pictures and videos:
        raise BadSetting(
            f"mode is auto, and {pictures} pictures came together with {videos} videos: set mode to clips (each video "
            "and each folder of pictures is a clip) or to stills (every picture and every frame stands for itself)",
            extra={"field": "mode"},
        )
    return "clips" if videos else "stills"


def iter_media(
    path: Path, limits: ArchiveLimits | None = None, passed_over: Callable[[Member], None] = lambda member: None
) -> Iterator[tuple[str, bytes | BadPicture | Member]]:
    """Every picture and video of an upload or a folder: its name there, and the picture's bytes or the video.

    In the order of the archive (of a folder: sorted), which is the same every time. A picture that
    can't be read comes with the reason in place of bytes. A video can be read or copied until the
    next one is asked for. Hidden files and ``__MACOSX`` are passed over, as is what is named as neither.

    Args:
        passed_over: told of each file that is named as neither, and is not hidden.

    Raises:
        as :func:`check_archive`, when the offending member is reached.
    """
    limits = limits or ArchiveLimits()
    for member in members(path, kind_of(path), limits):
        if member.is_video:
            yield member.name, member
        elif member.is_picture:
            yield member.name, _picture(member, limits)
        elif not member.is_hidden:
            passed_over(member)


def _picture(member: Member, limits: ArchiveLimits) -> bytes | BadPicture:
    if member.size > limits.max_picture_bytes:
        return BadPicture(f"{member.size} bytes; at most {limits.max_picture_bytes} are read")
    try:
        return member.read()
    except Exception as error:  # noqa: BLE001  hostile bytes may make a reader raise anything
        return TruncatedImage(f"damaged in the archive ({reason_of(error)})")
