"""Show single pictures of a dataset, for example to draw boxes on them."""

from __future__ import annotations

import io
from contextlib import closing
from itertools import islice
from pathlib import Path

from service.contract.datasets.dataset import DatasetPicture, DatasetPicturePage
from service.contract.errors import BadCursor, UnknownPicture
from service.contract.media.archives import ArchiveLimits, Member, detect_kind, iter_members
from service.contract.media.pictures import PictureLimits, open_picture

_QUALITY = 90


def list_pictures(archive: Path, limits: ArchiveLimits, limit: int, cursor: str | None) -> DatasetPicturePage:
    """Return a page of a dataset's pictures.

    Args:
        cursor: the number of the page's first picture.

    Raises BadCursor.
    """
    if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 10):
        raise BadCursor(f"cursor {cursor[:80]!r} is not valid; send the next_cursor of a page of this list")
    first = int(cursor or 0)
    with closing(iter_members(archive, detect_kind(archive), limits)) as members:
        found = list(islice(filter(_is_picture, members), first, first + limit + 1))
    items = [DatasetPicture(number=first + index, name=member.name) for index, member in enumerate(found[:limit])]
    return DatasetPicturePage(items=items, next_cursor=str(first + limit) if len(found) > limit else None)


def read_picture(archive: Path, number: int, limits: ArchiveLimits, picture_limits: PictureLimits) -> bytes:
    """Return a picture of a dataset as JPEG of its own size, its EXIF orientation applied.

    Raises:
        UnknownPicture: the dataset has no picture of that number.
        BadPicture: it can't be read.
    """
    with closing(iter_members(archive, detect_kind(archive), limits)) as members:
        member = next(islice(filter(_is_picture, members), number, None), None)
        if member is None:
            raise UnknownPicture(f"the dataset has no picture {number}; GET /datasets/{{id}}/pictures lists them")
        # a file beyond the limit is refused as training refuses it: as no picture
        data = member.read() if member.size <= limits.max_picture_bytes else b""
    file = io.BytesIO()
    open_picture(data, picture_limits).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def _is_picture(member: Member) -> bool:
    return member.is_picture
