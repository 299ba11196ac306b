"""Untrusted bytes to an RGB picture. The same pixels on both sides.

A picture is opened with its EXIF orientation applied, so its width and height are those that a viewer shows. A JPEG
that is far larger than what is made of it is decoded to a half, a quarter or an eighth of its size, which is what its
blocks of eight pixels allow: a phone's photograph then takes a quarter of the time and little memory.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

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

from service.contract import jpeg
from service.contract.errors import Animated, BadPicture, TooManyPixels, TooSmall, TruncatedImage
from service.contract.settings import CommonSettings
from service.contract.signatures import EXPECTED as EXPECTED
from service.contract.signatures import unidentified

from .rgb import to_rgb

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
_ON_THEIR_SIDE = frozenset((5, 6, 7, 8))
# which of the stored picture's last columns (0) or rows (1) become the first columns and the first rows
_TURNED_TO_THE_FRONT: dict[int, tuple[int | None, int | None]] = {
    2: (0, None),
    3: (0, 1),
    4: (None, 1),
    6: (1, None),
    7: (1, 0),
    8: (None, 0),
}
_SCALES = (8, 4, 2)  # by which a JPEG can be decoded smaller


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


@dataclass(frozen=True)
class Picture:
    """An RGB picture, of which a pixel may stand for several of the file's.

    Attributes:
        image: 8-bit RGB.
        width, height: in pixels as a viewer shows it, EXIF orientation applied.
        scale: how many pixels across one of the image stands for: 1, 2, 4 or 8.
        left, top: how many pixels, fewer than ``scale``, the image begins before the picture does.
    """

    image: Image.Image
    width: int
    height: int
    scale: int = 1
    left: int = 0
    top: int = 0

    @classmethod
    def of(cls, image: Image.Image) -> Picture:
        """An image as it is."""
        return cls(image, image.width, image.height)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.width, self.height


def open_picture(
    source: bytes | BinaryIO, limits: PictureLimits | None = None, before_decoding: Callable[[int], None] | None = None
) -> Image.Image:
    """A whole picture of any supported format and mode as 8-bit RGB: :func:`open_reduced`, not reduced."""
    return open_reduced(source, lambda *_: 1, limits, before_decoding).image


def open_reduced(
    source: bytes | BinaryIO,
    most: Callable[[int, int], float],
    limits: PictureLimits | None = None,
    before_decoding: Callable[[int], None] | None = None,
) -> Picture:
    """A picture of any supported format and mode as 8-bit RGB, its EXIF orientation applied; a JPEG may be reduced.

    CMYK, palette and grey pictures are converted, 16-bit ones scaled, transparent ones laid on
    mid-grey. The size is checked before anything is decoded.

    Args:
        source: the file's bytes, or a binary file that can seek.
        most: for a width and height, EXIF orientation applied, by how much the picture may be reduced.
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
            stored = image.size
            scale = _reduce(image, most)
            image.load()
            orientation = _orientation(image)  # a PNG may tell after its pixels; a TIFF is turned by Pillow
            rgb = to_rgb(image)
        except BadPicture:
            raise
        except Exception as error:  # hostile bytes may make a decoder raise anything
            raise _damaged(error) from error
    del image  # its pixels need not be kept while they are turned
    if scale == 1:
        return Picture.of(_turned(rgb, orientation))
    # blocks begin at the stored picture's first pixel and reach beyond its last, which may be turned to the front
    beyond = [reduced * scale - whole for reduced, whole in zip(rgb.size, stored, strict=True)]
    width, height = reversed(stored) if orientation in _ON_THEIR_SIDE else stored
    left, top = (0 if axis is None else beyond[axis] for axis in _TURNED_TO_THE_FRONT.get(orientation, (None, None)))
    return Picture(_turned(rgb, orientation), width, height, scale, left, top)


def is_picture_name(name: str) -> bool:
    """Whether a file's name ends as that of a picture that we read."""
    return Path(name).suffix.lower() in SUFFIXES


def _reduce(image: ImageFile.ImageFile, most: Callable[[int, int], float]) -> int:
    """Have a JPEG decoded smaller; how much smaller: 1, 2, 4 or 8 times."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or not image.tile:
        return 1
    width, height = reversed(image.size) if _orientation(image) in _ON_THEIR_SIDE else image.size
    wanted = most(width, height)
    scale = next((scale for scale in _SCALES if scale <= wanted), 1)
    # Pillow takes the largest reduction that leaves at least the size asked for
    if scale == 1 or image.draft("", (image.width // scale, image.height // scale)) is None:
        return 1
    return scale


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TRANSPOSES[orientation]) if orientation in _TRANSPOSES else image


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
