"""List and read single pictures and frames of a dataset, for example to draw boxes on them."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import islice
from pathlib import Path

from PIL.Image import Image

from service.contract.datasets.dataset import DatasetPicture, DatasetPicturePage
from service.contract.errors import (
    BadCursor,
    BadPicture,
    BadVideoFile,
    UnknownDataset,
    UnknownPicture,
    UnsupportedFormat,
)
from service.contract.media.archives import ArchiveLimits, Member, detect_kind, iter_members, read_bounded
from service.contract.media.pictures import PictureLimits, open_picture
from service.contract.media.video_request import VideoLimits
from service.contract.media.videos import BadVideo, NoDecoder, iter_frames

_QUALITY = 90
_MANY = 10**9  # frames, so that a long video is not refused for one
_MAX_SIDE_PX = 65_500  # that libjpeg writes


def list_pictures(archive: Path, limits: ArchiveLimits, limit: int, cursor: str | None) -> DatasetPicturePage:
    """Return a page of a dataset's pictures.

    Args:
        cursor: the number of the page's first picture; None is the first page.

    Raises:
        BadCursor: it is not a number.
        UnknownDataset: it was deleted meanwhile.
    """
    if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 10):
        raise BadCursor(f"cursor {cursor[:80]!r} is not valid; send the next_cursor of a page of this list")
    first = int(cursor or 0)
    with _open_pictures(archive, limits) as pictures:
        found = list(islice(pictures, first, first + limit + 1))
    items = [DatasetPicture(number=first + index, name=member.name) for index, member in enumerate(found[:limit])]
    return DatasetPicturePage(items=items, next_cursor=str(first + limit) if len(found) > limit else None)


def read_picture(archive: Path, number: int, limits: ArchiveLimits, picture_limits: PictureLimits) -> bytes:
    """Return a picture of a dataset as JPEG of its own size, its EXIF orientation applied.

    Raises:
        UnknownPicture: the dataset has no picture of that number.
        UnknownDataset: it was deleted meanwhile.
        BadPicture: it can't be read, or is too large for JPEG.
    """
    with _open_pictures(archive, limits) as pictures:
        member = next(islice(pictures, number, None), None)
        if member is None:
            raise UnknownPicture(f"the dataset has no picture {number}; GET /datasets/{{id}}/pictures lists them")
        data = read_bounded(member, limits)
    if isinstance(data, BadPicture):
        raise data
    return _jpeg(open_picture(data, picture_limits))


def read_frame(archive: Path, name: str, file_name: str | None, limits: ArchiveLimits, video: VideoLimits) -> bytes:
    """Return a frame of a dataset's video as JPEG; it is decoded from a key frame before it on.

    Args:
        name: ``VIDEO#NUMBER``, as boxes name it.
        file_name: that of the upload, if it is a video by itself.

    Raises:
        UnknownPicture: there is no such video or frame.
        UnknownDataset: it was deleted meanwhile.
        BadVideoFile, UnsupportedFormat: the video can't be decoded.
    """
    wanted, _, digits = name.rpartition("#")
    if not (wanted and digits.isascii() and digits.isdigit() and len(digits) < 10):
        raise UnknownPicture(f"the frame is {name[:80]!r}; expected VIDEO#NUMBER, as in walk.mp4#000012")
    number = int(digits)
    with _open_members(archive, limits) as members, ExitStack() as held:
        for member in members:
            if member.is_video and ((file_name or member.name) if member.bare_video else member.name) == wanted:
                path = member.path or _copy_video(member, held)
                break
        else:
            raise UnknownPicture(f"the dataset has no video {wanted[:80]!r}")
        try:
            frames = held.enter_context(closing(iter_frames(path, _MANY, video, every=1, first=number)))
            found = next((frame.image for frame in frames), None)
        except BadVideo as error:
            raise BadVideoFile(f"{wanted[:60]}: {error}") from error
        except NoDecoder as error:
            raise UnsupportedFormat(str(error)) from error
    if found is None:
        raise UnknownPicture(f"the video {wanted[:60]!r} has no frame {number}")
    return _jpeg(found)


def _copy_video(member: Member, held: ExitStack) -> Path:
    folder = held.enter_context(tempfile.TemporaryDirectory(prefix="ppl-frame-"))
    path = Path(folder) / "video"
    member.copy(path)
    return path


def _jpeg(image: Image) -> bytes:
    file = io.BytesIO()
    if max(image.size) > _MAX_SIDE_PX:
        size = f"{image.width} x {image.height}"
        raise BadPicture(f"the picture is {size} pixels; a JPEG has at most {_MAX_SIDE_PX} a side")
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


@contextmanager
def _open_pictures(archive: Path, limits: ArchiveLimits) -> Iterator[Iterator[Member]]:
    with _open_members(archive, limits) as members:
        yield (member for member in members if member.is_picture)


@contextmanager
def _open_members(archive: Path, limits: ArchiveLimits) -> Iterator[Iterator[Member]]:
    try:
        with closing(iter_members(archive, detect_kind(archive), limits)) as members:
            yield members
    except FileNotFoundError as error:
        raise UnknownDataset("the dataset was deleted meanwhile; GET /datasets lists those left") from error
