"""Crop a picture to the model's square and map back, as gateway and worker both do it.

Pixel coordinates have integers at pixel centres: a picture of width w spans -0.5 to w - 0.5. Edge coordinates
(boxes, :class:`Frame`) have integers at pixel edges: it spans 0 to w. The model's square is normalised to [-1, 1],
pixel centres at (2i + 1)/S - 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from .pictures import MID_GREY, Picture

Box = tuple[float, float, float, float]  # x, y, width, height in edge coordinates of the picture

Region = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the picture

# a picture is first reduced by a whole factor that leaves at least this many pixels for each of the square
_REDUCING_GAP = 3
# reduced at a time, to bound memory
_BAND_PIXELS = 4_000_000
# padding that is always allowed
_PADDING_PIXELS = 4_000_000


class Cells(NamedTuple):
    """A half-open range of columns and rows of the canvas; each cell is a block of picture pixels."""

    x0: int
    y0: int
    x1: int
    y1: int


@dataclass(frozen=True)
class Frame:
    """The left edge, top edge and side of the model's square on a picture.

    Edge coordinates in pixels, EXIF orientation applied. The square may reach beyond the picture.
    """

    x0: float
    y0: float
    size: float

    def to_picture(self, normalized: ArrayLike) -> NDArray[np.float64]:
        """Convert points (…, 2) from [-1, 1] over the square to pixel coordinates."""
        points = np.asarray(normalized, dtype=np.float64)
        return np.array([self.x0, self.y0]) + (points + 1) / 2 * self.size - 0.5

    def from_picture(self, pixels: ArrayLike) -> NDArray[np.float64]:
        """Convert points (…, 2) from pixel coordinates to [-1, 1] over the square."""
        points = np.asarray(pixels, dtype=np.float64)
        normalized: NDArray[np.float64] = (points + 0.5 - np.array([self.x0, self.y0])) / self.size * 2 - 1
        return normalized


def reduction_for_boxes(side: int, boxes: Sequence[Box | None] = (None,)) -> Callable[[int, int], float]:
    """Return the argument ``max_reduction`` of open_reduced that keeps enough pixels for squares of these boxes."""

    def max_reduction(width: int, height: int) -> float:
        sizes = [max(box[2:]) if box else max(width, height) for box in boxes]
        return min(sizes) / side / _REDUCING_GAP

    return max_reduction


def fit_square(picture: Picture | Image.Image, side: int, box: Box | None = None) -> tuple[NDArray[np.uint8], Frame]:
    """Crop an RGB picture to the model's square, with antialiasing.

    The square is centred on the box and as wide as its longer side, so nothing is stretched; it is mid-grey beyond
    the picture.

    Args:
        picture: RGB; one reduced as :func:`reduction_for_boxes` allows gives the same square up to rounding.
        side: S, of the square in pixels.
        box: in edge coordinates; the whole picture unless given.

    Returns:
        uint8 (S, S, 3) and the square's Frame.

    Raises:
        ValueError: a box without area.
    """
    picture = picture if isinstance(picture, Picture) else Picture.of(picture)
    x, y, width, height = box or (0.0, 0.0, float(picture.width), float(picture.height))
    size = float(max(width, height))
    if not (size > 0 and math.isfinite(x + y + size)):
        raise ValueError(f"the box is {width} x {height} pixels; expected a finite one with an area")
    whole = Frame(x + width / 2 - size / 2, y + height / 2 - size / 2, size)
    image, scale = picture.image, picture.scale
    frame = Frame((whole.x0 + picture.left) / scale, (whole.y0 + picture.top) / scale, size / scale)
    size = frame.size
    factor = max(1, int(size / side / _REDUCING_GAP))
    left, top = math.floor(frame.x0), math.floor(frame.y0)
    columns, rows = (math.ceil((start + size - first) / factor) for start, first in ((frame.x0, left), (frame.y0, top)))
    canvas = Image.new("RGB", (columns, rows), (MID_GREY,) * 3)
    _paste_reduced(canvas, image, left, top, factor)
    start_x, start_y, extent = (frame.x0 - left) / factor, (frame.y0 - top) / factor, size / factor
    # rounding may put the far edge slightly outside of the canvas, which Pillow refuses
    crop = (start_x, start_y, min(start_x + extent, columns), min(start_y + extent, rows))
    square = canvas.resize((side, side), Image.Resampling.BILINEAR, box=crop)
    return np.asarray(square, dtype=np.uint8).copy(), whole


def unfit_square(square: NDArray[np.uint8], frame: Frame, width: int, height: int) -> Image.Image:
    """Draw a one-channel square (S, S) at its place on a grey image of width x height; 0 outside of it."""
    side = square.shape[0]
    scale = side / frame.size
    extent = (-frame.x0 * scale, -frame.y0 * scale, (width - frame.x0) * scale, (height - frame.y0) * scale)
    image = Image.fromarray(np.ascontiguousarray(square))
    return image.transform((width, height), Image.Transform.EXTENT, extent, Image.Resampling.BILINEAR)


def _paste_reduced(canvas: Image.Image, image: Image.Image, left: int, top: int, factor: int) -> None:
    """Draw the picture, reduced by a whole factor, on a canvas whose corner is at its pixel (left, top).

    Blocks start at that corner. One that the picture covers in part is padded with mid-grey, so that the picture's
    edges keep their place to a fraction of a pixel.
    """
    region = (
        max(0, left),
        max(0, top),
        min(image.width, left + canvas.width * factor),
        min(image.height, top + canvas.height * factor),
    )
    if region[0] >= region[2] or region[1] >= region[3]:
        return
    outer = Cells(
        (region[0] - left) // factor,
        (region[1] - top) // factor,
        -((left - region[2]) // factor),
        -((top - region[3]) // factor),
    )
    inner = Cells(
        -((left - region[0]) // factor),
        -((top - region[1]) // factor),
        (region[2] - left) // factor,
        (region[3] - top) // factor,
    )
    if inner.x0 >= inner.x1 or inner.y0 >= inner.y1:
        _paste_padded(canvas, image, left, top, factor, region, outer)
        return
    # fully covered blocks need no padded copy; what is left are the four edges, a block wide
    whole = (left + inner.x0 * factor, top + inner.y0 * factor, left + inner.x1 * factor, top + inner.y1 * factor)
    canvas.paste(image.reduce(factor, whole) if factor > 1 else image.crop(whole), (inner.x0, inner.y0))
    for edge in (
        Cells(outer.x0, outer.y0, outer.x1, inner.y0),
        Cells(outer.x0, inner.y1, outer.x1, outer.y1),
        Cells(outer.x0, inner.y0, inner.x0, inner.y1),
        Cells(inner.x1, inner.y0, outer.x1, inner.y1),
    ):
        if edge.x0 < edge.x1 and edge.y0 < edge.y1:
            _paste_padded(canvas, image, left, top, factor, region, edge)


def _paste_padded(
    canvas: Image.Image, image: Image.Image, left: int, top: int, factor: int, region: Region, cells: Cells
) -> None:
    """Draw blocks that the picture covers in part, padded with mid-grey."""
    own = (
        max(region[0], left + cells.x0 * factor),
        max(region[1], top + cells.y0 * factor),
        min(region[2], left + cells.x1 * factor),
        min(region[3], top + cells.y1 * factor),
    )
    corner = left + cells.x0 * factor
    size = ((cells.x1 - cells.x0) * factor, (cells.y1 - cells.y0) * factor)
    if size[0] * size[1] > 4 * (own[2] - own[0]) * (own[3] - own[1]) + _PADDING_PIXELS:
        # a sliver thinner than a block: padding it could take any amount of memory
        sliver = image.resize((cells.x1 - cells.x0, cells.y1 - cells.y0), Image.Resampling.BOX, box=own)
        canvas.paste(sliver, (cells.x0, cells.y0))
        return
    rows = max(1, _BAND_PIXELS // (size[0] * factor))
    for first in range(cells.y0, cells.y1, rows):
        start, stop = (top + row * factor for row in (first, min(first + rows, cells.y1)))
        covered = (own[0], max(own[1], start), own[2], min(own[3], stop))
        band = image.crop(covered)
        if band.size != (size[0], stop - start):
            part = band
            band = Image.new("RGB", (size[0], stop - start), (MID_GREY,) * 3)
            band.paste(part, (own[0] - corner, covered[1] - start))
        canvas.paste(band.reduce(factor) if factor > 1 else band, (cells.x0, first))
