"""Read the pages of a multi-page TIFF, as microscopes write them, as the frames of a clip."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import BinaryIO

from PIL import Image

from . import tiff
from .pictures import PictureLimits, open_reduced


def iter_pages(
    file: BinaryIO,
    pages: Sequence[tiff.Page],
    numbers: Sequence[int],
    limits: PictureLimits,
    check: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, Image.Image]]:
    """Yield some pages of a TIFF as RGB, by their numbers. Raises BadPicture for the first that cannot be read."""
    open_page = partial(open_reduced, file, lambda *_: 1, limits)
    white = 0.0
    for number in numbers:
        check()
        found = open_page(page=pages[number]).white
        white = max(white, found)
        if not found:  # all pages of a stack have the same depth
            break
    for number in numbers:
        check()
        yield number, open_page(white=white, page=pages[number]).image
