"""Untrusted bytes to an RGB picture, and a picture to the model's square. The same pixels on both sides.

A picture is opened with its EXIF orientation applied, so its width and height are those that a
viewer shows. Pixel coordinates have their integers at pixel centres: the picture of width w spans
-0.5 to w - 0.5. Edge coordinates (boxes, :class:`Frame`) have their integers at pixel edges: it
spans 0 to w. The model's square is normalised to [-1, 1], pixel centres at (2i + 1)/S - 1.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

# opening with these formats named finds them registered, and loads none of Pillow's forty others
from PIL import (
    BmpImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from . import jpeg
from .colours import MID_GREY, to_rgb
from .errors import Animated, BadPicture, TooManyPixels, TooSmall, TruncatedImage
from .settings import CommonSettings
from .signatures import EXPECTED as EXPECTED
from .signatures import unidentified

FORMATS = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        BmpImagePlugin.BmpImageFile,
        TiffImagePlugin.TiffImageFile,
    )
)
SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff"))

Box = tuple[float, float, float, float]  # x, y, width, height in edge coordinates of the picture

_ORIENTATION_TAG = 0x0112
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# a picture is reduced by whole factors first, leaving at least this many pixels for one of the square
_REDUCING_GAP = 3
# pixels that are reduced at a time; a row of blocks may have more
_BAND_PIXELS = 4_000_000
# pixels that filling up blocks may always add
_PADDING_PIXELS = 4_000_000


@dataclass(frozen=True)
class PictureLimits:
    """What a picture may be.

    Raises:
        ValueError: ``max_pixels`` above the number at which Pillow itself refuses.
    """

    max_pixels: int = 50_000_000
    min_side_px: int = 8
    max_bytes: int = 32 * 2**20

    def __post_init__(self) -> None:
        highest = Image.MAX_IMAGE_PIXELS
        if highest is not None and self.max_pixels > highest:
            raise ValueError(f"a limit of {self.max_pixels} pixels a picture; it may be at most {highest}")

    @classmethod
    def of(cls, settings: CommonSettings) -> PictureLimits:
        """The limits as set."""
        return cls(settings.image_max_pixels, settings.image_min_side_px, settings.image_max_bytes)


class Cells(NamedTuple):
    """Blocks of a canvas, from the first column and row to those after the last."""

    x0: int
    y0: int
    x1: int
    y1: int


Region = tuple[int, int, int, int]  # pixels of a picture, likewise


@dataclass(frozen=True)
class Frame:
    """Where the model's square lies on a picture: its left and top edge and its side.

    Edge coordinates, in pixels of the picture with its EXIF orientation applied. The square may
    reach beyond the picture.
    """

    x0: float
    y0: float
    size: float

    def to_picture(self, normalized: ArrayLike) -> NDArray[np.float64]:
        """Points (…, 2) in [-1, 1] over the square to pixel coordinates (integers at pixel centres)."""
        points = np.asarray(normalized, dtype=np.float64)
        return np.array([self.x0, self.y0]) + (points + 1) / 2 * self.size - 0.5

    def from_picture(self, pixels: ArrayLike) -> NDArray[np.float64]:
        """The inverse of :meth:`to_picture`."""
        points = np.asarray(pixels, dtype=np.float64)
        normalized: NDArray[np.float64] = (points + 0.5 - np.array([self.x0, self.y0])) / self.size * 2 - 1
        return normalized


def open_picture(
    source: bytes | BinaryIO, limits: PictureLimits | None = None, before_decoding: Callable[[int], None] | None = None
) -> Image.Image:
    """A picture of any supported format and mode as 8-bit RGB, its EXIF orientation applied.

    CMYK, palette and grey pictures are converted, 16-bit ones scaled, transparent ones laid on
    mid-grey. The size is checked before anything is decoded.

    Args:
        source: the file's bytes, or a binary file that can seek.
        limits: what it may be; the defaults of PictureLimits unless given.
        before_decoding: called with the number of its pixels once these are within the limits.

    Raises:
        BadPicture: a JPEG of too many scans or segments, or one of its kinds (NotAnImage, UnsupportedFormat,
            TruncatedImage, TooManyPixels, TooSmall, Animated); the detail says what came and what
            was expected.
    """
    limits = limits or PictureLimits()
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    _check_jpeg(file)
    try:
        image = Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixels(f"the picture has too many pixels; at most {limits.max_pixels} are allowed") from error
    except UnidentifiedImageError as error:
        file.seek(0)
        raise unidentified(file.read(32)) from error
    except Exception as error:  # hostile bytes may make a parser raise anything
        raise _damaged(error) from error
    with image:
        _check_size(image, limits)
        if before_decoding is not None:
            before_decoding(image.width * image.height)
        try:
            _check_still(image)
            image.load()
            orientation = _orientation(image)  # a PNG may tell after its pixels; a TIFF is turned by Pillow
            rgb = to_rgb(image)
        except BadPicture:
            raise
        except Exception as error:  # hostile bytes may make a decoder raise anything
            raise _damaged(error) from error
    del image  # its pixels need not be kept while they are turned
    return rgb.transpose(_TRANSPOSES[orientation]) if orientation in _TRANSPOSES else rgb


def fit_square(image: Image.Image, side: int, box: Box | None = None) -> tuple[NDArray[np.uint8], Frame]:
    """The model's square cut out of an RGB picture, and where it lies.

    The square is centred on the box and as wide as the box's longer side, so nothing is stretched;
    where it reaches beyond the picture it is mid-grey. Resampled with an antialiasing filter.

    Args:
        image: RGB.
        side: S, of the square in pixels.
        box: x, y, width, height in edge coordinates; the whole picture unless given.

    Returns:
        uint8 (S, S, 3) and the square's Frame.

    Raises:
        ValueError: a box without area.
    """
    x, y, width, height = box or (0.0, 0.0, float(image.width), float(image.height))
    size = float(max(width, height))
    if not (size > 0 and math.isfinite(x + y + size)):
        raise ValueError(f"a box of {width} x {height} pixels has no square")
    frame = Frame(x + width / 2 - size / 2, y + height / 2 - size / 2, size)
    factor = max(1, int(size / side / _REDUCING_GAP))
    left, top = math.floor(frame.x0), math.floor(frame.y0)
    columns, rows = (math.ceil((start + size - first) / factor) for start, first in ((frame.x0, left), (frame.y0, top)))
    canvas = Image.new("RGB", (columns, rows), (MID_GREY,) * 3)
    _paste_reduced(canvas, image, left, top, factor)
    start_x, start_y, extent = (frame.x0 - left) / factor, (frame.y0 - top) / factor, size / factor
    # rounding may leave the far edge a hair outside of the canvas, which Pillow refuses
    crop = (start_x, start_y, min(start_x + extent, columns), min(start_y + extent, rows))
    square = canvas.resize((side, side), Image.Resampling.BILINEAR, box=crop)
    return np.asarray(square, dtype=np.uint8).copy(), frame


def unfit_square(square: NDArray[np.uint8], frame: Frame, width: int, height: int) -> Image.Image:
    """A one-channel square (S, S) laid back on its picture: a grey image of that width and height, 0 outside."""
    side = square.shape[0]
    scale = side / frame.size
    extent = (-frame.x0 * scale, -frame.y0 * scale, (width - frame.x0) * scale, (height - frame.y0) * scale)
    image = Image.fromarray(np.ascontiguousarray(square))
    return image.transform((width, height), Image.Transform.EXTENT, extent, Image.Resampling.BILINEAR)


def is_picture_name(name: str) -> bool:
    """Whether a file's name ends as that of a picture that we read."""
    return Path(name).suffix.lower() in SUFFIXES


def _paste_reduced(canvas: Image.Image, image: Image.Image, left: int, top: int, factor: int) -> None:
    """Draw the picture, shrunk by a whole factor, on a canvas whose corner is at its pixel (left, top).

    The blocks that are averaged start at that corner, and one that the picture covers in part is
    filled up with mid-grey, so that its edges keep their place to a fraction of a pixel.
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
    # blocks that the picture covers need no copy of it; what is left are its edges, a block wide
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
    """Blocks that the picture covers in part, filled up with mid-grey."""
    own = (
        max(region[0], left + cells.x0 * factor),
        max(region[1], top + cells.y0 * factor),
        min(region[2], left + cells.x1 * factor),
        min(region[3], top + cells.y1 * factor),
    )
    corner = left + cells.x0 * factor
    size = ((cells.x1 - cells.x0) * factor, (cells.y1 - cells.y0) * factor)
    if size[0] * size[1] > 4 * (own[2] - own[0]) * (own[3] - own[1]) + _PADDING_PIXELS:
        # a sliver, thinner than a block: filling it up could take any amount of memory
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


def _check_size(image: ImageFile.ImageFile, limits: PictureLimits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise TooManyPixels(
            f"the picture is {width} x {height} pixels; at most {limits.max_pixels} pixels are allowed, scale it down"
        )
    if min(width, height) < limits.min_side_px:
        raise TooSmall(f"the picture is {width} x {height} pixels; each side must have at least {limits.min_side_px}")


def _check_jpeg(file: BinaryIO) -> None:
    """Refuse a JPEG that would take long for the size of its picture; before it is opened, as even this would."""
    start = file.read(len(jpeg.START))
    file.seek(0)
    if start == jpeg.START:
        too_many = jpeg.too_costly(file.read())
        file.seek(0)
        if too_many:
            raise BadPicture(f"the JPEG has {too_many}; save it anew with a common program")


def _check_still(image: ImageFile.ImageFile) -> None:
    # how many frames there are is not asked: a TIFF's are walked, each from the first, over offsets that may be damaged
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a phone's MPO holds previews, not a film
        raise Animated(f"the picture is a {image.format} of several frames; send one frame as a picture of its own")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001  damaged EXIF data of a good picture: shown as stored, as viewers do
        return 1


def _damaged(error: Exception) -> TruncatedImage:
    reason = str(error) or type(error).__name__
    return TruncatedImage(f"the picture ends early or is damaged ({reason}); send the whole file")
