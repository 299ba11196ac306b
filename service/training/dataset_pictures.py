"""List and read single pictures of a dataset, for example to draw boxes on them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

from service.contract.datasets.dataset import DatasetPicture, DatasetPicturePage
from service.contract.errors import BadCursor, BadPicture, UnknownDataset, UnknownPicture
from service.contract.media.archives import ArchiveLimits, Member, detect_kind, iter_members, read_bounded
from service.contract.media.pictures import PictureLimits, open_picture

_QUALITY = 90
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
    image, file = open_picture(data, picture_limits), io.BytesIO()
    if max(image.size) > _MAX_SIDE_PX:
        size = f"{image.width} x {image.height}"
        raise BadPicture(f"the picture is {size} pixels; a JPEG has at most {_MAX_SIDE_PX} a side")
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


@contextmanager
def _open_pictures(archive: Path, limits: ArchiveLimits) -> Iterator[Iterator[Member]]:
    try:
        with closing(iter_members(archive, detect_kind(archive), limits)) as members:
            yield (member for member in members if member.is_picture)
    except FileNotFoundError as error:
        raise UnknownDataset("the dataset was deleted meanwhile; GET /datasets lists those left") from error
