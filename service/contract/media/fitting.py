"""Crop a picture to the model's square, upright or rotated, and map back, as gateway and worker both do it.

Pixel coordinates have integers at pixel centres: a picture of width w spans -0.5 to w - 0.5. Edge coordinates
(boxes, :class:`Frame`) have integers at pixel edges: it spans 0 to w. The model's square is normalised to [-1, 1],
pixel centres at (2i + 1)/S - 1. Angles are in degrees, clockwise as the picture is shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from .pictures import MID_GREY, Picture

Box = tuple[float, float, float, float]  # x, y, width, height in edge coordinates of the picture

Region = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the picture, or in blocks of the canvas

# a picture is first reduced by a whole factor that leaves at least this many pixels for each of the square
_REDUCING_GAP = 3
# reduced at a time, to bound memory
_BAND_PIXELS = 4_000_000
# padding that is always allowed
_PADDING_PIXELS = 4_000_000


@dataclass(frozen=True)
class Frame:
    """The left edge, top edge and side of the model's square on a picture, and the angle by which it is rotated.

    Edge coordinates in pixels, EXIF orientation applied. The square may reach beyond the picture. It is rotated
    about its centre, in degrees clockwise; left and top are those before the rotation.
    """

    x0: float
    y0: float
    size: float
    angle: float = 0.0

    def to_picture(self, normalized: ArrayLike) -> NDArray[np.float64]:
        """Convert points (…, 2) from [-1, 1] over the square to pixel coordinates."""
        points = np.asarray(normalized, dtype=np.float64)
        upright = np.array([self.x0, self.y0]) + (points + 1) / 2 * self.size - 0.5
        return turn(upright, self._centre, self.angle)

    def from_picture(self, pixels: ArrayLike) -> NDArray[np.float64]:
        """Convert points (…, 2) from pixel coordinates to [-1, 1] over the square."""
        points = turn(np.asarray(pixels, dtype=np.float64), self._centre, -self.angle)
        normalized: NDArray[np.float64] = (points + 0.5 - np.array([self.x0, self.y0])) / self.size * 2 - 1
        return normalized

    @property
    def _centre(self) -> tuple[float, float]:
        return self.x0 + self.size / 2 - 0.5, self.y0 + self.size / 2 - 0.5


def turn(points: NDArray[np.float64], centre: Sequence[float], angle: float) -> NDArray[np.float64]:
    """Rotate points (…, 2) about a centre, in degrees clockwise; an angle of 0 returns them unchanged."""
    if not angle:
        return points
    cos, sin = _cos_sin(angle)
    turned: NDArray[np.float64] = (points - centre) @ np.array([[cos, sin], [-sin, cos]]) + centre
    return turned


def box_corners(box: Box, angle: float = 0.0) -> NDArray[np.float64]:
    """Return the corners (4, 2) of a box rotated about its centre, clockwise from its upper left one."""
    x, y, width, height = box
    upright = np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], np.float64)
    return turn(upright, (x + width / 2, y + height / 2), angle)


def _cos_sin(angle: float) -> tuple[float, float]:
    return math.cos(math.radians(angle)), math.sin(math.radians(angle))


def reduction_for_boxes(side: int, boxes: Sequence[Box | None] = (None,)) -> Callable[[int, int], float]:
    """Return the argument ``max_reduction`` of open_reduced that keeps enough pixels for squares of these boxes."""

    def max_reduction(width: int, height: int) -> float:
        sizes = [max(box[2:]) if box else max(width, height) for box in boxes]
        return min(sizes) / side / _REDUCING_GAP

    return max_reduction


def fit_square(
    picture: Picture | Image.Image, side: int, box: Box | None = None, angle: float = 0.0
) -> tuple[NDArray[np.uint8], Frame]:
    """Crop an RGB picture to the model's square, with antialiasing.

    The square is centred on the box and as wide as its longer side, so nothing is stretched; it is mid-grey beyond
    the picture.

    Args:
        picture: RGB; one reduced as :func:`reduction_for_boxes` allows gives the same square up to rounding.
        side: S, side of the square in pixels.
        box: in edge coordinates; the whole picture unless given.
        angle: in degrees; the square is rotated by it, so that a thing of this heading faces up in it.

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
    whole = Frame(x + width / 2 - size / 2, y + height / 2 - size / 2, size, angle)
    if angle:
        return _fit_turned(picture, side, whole), whole
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


def _fit_turned(picture: Picture, side: int, frame: Frame) -> NDArray[np.uint8]:
    """Crop a rotated square (S, S, 3) from the upright one around it, which has the same resolution."""
    cos, sin = _cos_sin(frame.angle)
    reach = abs(cos) + abs(sin)  # side of the upright square around the rotated one, relative to it
    outer = frame.size * reach
    left, top = frame.x0 + (frame.size - outer) / 2, frame.y0 + (frame.size - outer) / 2
    upright, _ = fit_square(picture, math.ceil(side * reach - 1e-6), (left, top, outer, outer))
    scale, middle = len(upright) / (side * reach), len(upright) / 2
    matrix = _affine(scale * cos, scale * sin, (side / 2, side / 2), (middle, middle))
    turned = Image.fromarray(upright).transform(
        (side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=(MID_GREY,) * 3
    )
    return np.asarray(turned, dtype=np.uint8).copy()


def unfit_square(square: NDArray[np.uint8], frame: Frame, width: int, height: int) -> Image.Image:
    """Draw a one-channel square (S, S) at its place on a grey image of width x height; 0 outside of it."""
    side = square.shape[0]
    cos, sin = _cos_sin(frame.angle)
    scale, centre = side / frame.size, (frame.x0 + frame.size / 2, frame.y0 + frame.size / 2)
    matrix = _affine(scale * cos, -scale * sin, centre, (side / 2, side / 2))
    image = Image.fromarray(np.ascontiguousarray(square))
    return image.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _affine(cos: float, sin: float, from_centre: Sequence[float], to_centre: Sequence[float]) -> tuple[float, ...]:
    """Return Pillow's matrix that rotates clockwise about a centre, scales, and moves the centre."""
    (x, y), (to_x, to_y) = from_centre, to_centre
    return cos, -sin, to_x - cos * x + sin * y, sin, cos, to_y - sin * x - cos * y


def _paste_reduced(canvas: Image.Image, image: Image.Image, left: int, top: int, factor: int) -> None:
    """Draw the picture, reduced by a whole factor, on a canvas whose corner is at its pixel (left, top).

    Blocks start at that corner. One that the picture covers in part is padded with mid-grey, so that the picture's
    edges keep their place to a fraction of a pixel.
    """
    x0, y0 = max(0, left), max(0, top)
    x1, y1 = min(image.width, left + canvas.width * factor), min(image.height, top + canvas.height * factor)
    if x0 >= x1 or y0 >= y1:
        return
    # the blocks that the picture covers at least in part, and those that it covers fully
    outer_x0, outer_y0 = (x0 - left) // factor, (y0 - top) // factor
    outer_x1, outer_y1 = -((left - x1) // factor), -((top - y1) // factor)
    inner_x0, inner_y0 = -((left - x0) // factor), -((top - y0) // factor)
    inner_x1, inner_y1 = (x1 - left) // factor, (y1 - top) // factor
    edges = [
        (outer_x0, outer_y0, outer_x1, inner_y0),
        (outer_x0, inner_y1, outer_x1, outer_y1),
        (outer_x0, inner_y0, inner_x0, inner_y1),
        (inner_x1, inner_y0, outer_x1, inner_y1),
    ]
    if inner_x0 >= inner_x1 or inner_y0 >= inner_y1:
        edges = [(outer_x0, outer_y0, outer_x1, outer_y1)]
    else:  # fully covered blocks need no padded copy
        whole = (left + inner_x0 * factor, top + inner_y0 * factor, left + inner_x1 * factor, top + inner_y1 * factor)
        canvas.paste(image.reduce(factor, whole) if factor > 1 else image.crop(whole), (inner_x0, inner_y0))
    for edge in edges:
        if edge[0] < edge[2] and edge[1] < edge[3]:
            _paste_padded(canvas, image, left, top, factor, (x0, y0, x1, y1), edge)


def _paste_padded(
    canvas: Image.Image, image: Image.Image, left: int, top: int, factor: int, region: Region, blocks: Region
) -> None:
    """Draw blocks that the picture covers in part, padded with mid-grey."""
    column, row, end_column, end_row = blocks
    x0, y0 = max(region[0], left + column * factor), max(region[1], top + row * factor)
    x1, y1 = min(region[2], left + end_column * factor), min(region[3], top + end_row * factor)
    corner, width = left + column * factor, (end_column - column) * factor
    if width * (end_row - row) * factor > 4 * (x1 - x0) * (y1 - y0) + _PADDING_PIXELS:
        # a sliver thinner than a block: padding it could take any amount of memory
        size = (end_column - column, end_row - row)
        canvas.paste(image.resize(size, Image.Resampling.BOX, box=(x0, y0, x1, y1)), (column, row))
        return
    rows = max(1, _BAND_PIXELS // (width * factor))
    for first in range(row, end_row, rows):
        start, stop = (top + edge * factor for edge in (first, min(first + rows, end_row)))
        covered = (x0, max(y0, start), x1, min(y1, stop))
        band = image.crop(covered)
        if band.size != (width, stop - start):
            part = band
            band = Image.new("RGB", (width, stop - start), (MID_GREY,) * 3)
            band.paste(part, (x0 - corner, covered[1] - start))
        canvas.paste(band.reduce(factor) if factor > 1 else band, (column, first))
