"""Decode untrusted bytes to an 8-bit RGB picture, as gateway and worker both do it.

EXIF orientation is applied, so width and height are those a viewer shows. A JPEG much larger than needed is decoded
at 1/2, 1/4 or 1/8 of its size, which its blocks of 8 pixels allow: a phone's photograph takes a quarter of the time.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

# importing these keeps Pillow from loading its forty other formats
from PIL import AvifImagePlugin as AvifImagePlugin
from PIL import BmpImagePlugin as BmpImagePlugin
from PIL import Image, ImageFile, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError
from PIL import PngImagePlugin as PngImagePlugin
from PIL import WebPImagePlugin as WebPImagePlugin

from service.contract.errors import (
    Animated,
    BadPicture,
    NotAnImage,
    TooManyPixels,
    TooSmall,
    TruncatedImage,
    UnsupportedFormat,
)
from service.contract.settings import CommonSettings

from . import tiff
from .depth import MID_GREY as MID_GREY
from .depth import decode_low_bytes, is_deep, to_rgb
from .video_kinds import HEAD_BYTES, is_video

try:
    import pi_heif
except ImportError:
    _HEIF: tuple[str, ...] = ()
else:
    pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
    _HEIF = ("HEIF",)

EXPECTED = "expected a JPEG, PNG, WebP, AVIF, HEIC, BMP or TIFF picture"
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF", *_HEIF)
TIFF_SUFFIXES = frozenset((".tif", ".tiff"))
SUFFIXES = TIFF_SUFFIXES.union(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".avif", ".heic", ".heif", ".hif")
)

_ORIENTATION_TAG = 0x0112
# how to transpose, and whether the stored picture's last columns (0) or rows (1) become the first columns and rows
_ORIENTATIONS: dict[int, tuple[Image.Transpose, int | None, int | None]] = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, 0, None),
    3: (Image.Transpose.ROTATE_180, 0, 1),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, None, 1),
    5: (Image.Transpose.TRANSPOSE, None, None),
    6: (Image.Transpose.ROTATE_270, 1, None),
    7: (Image.Transpose.TRANSVERSE, 1, 0),
    8: (Image.Transpose.ROTATE_90, None, 0),
}
_SWAPS_SIDES = frozenset((5, 6, 7, 8))
_SCALES = (8, 4, 2)  # by which a JPEG can be decoded smaller

# known formats that are not supported: offset, magic bytes, name
_OTHER_FORMATS = (
    (0, b"GIF8", "GIF"),
    (0, b"%PDF", "PDF"),
    (0, b"<svg", "SVG"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
)
_JPEG_START = b"\xff\xd8\xff"
_SUPPORTED_STARTS = (_JPEG_START, b"\x89PNG\r\n\x1a\n", *tiff.STARTS)
_HEIF_BRANDS = re.compile(rb"ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)")  # of the first box, at byte 4
_AVIF_BRANDS = re.compile(rb"ftyp(avif|avis)")

# the same limit as the decoder of JPEG in TIFF; encoders write about ten scans, a few of them some dozens
_MAX_SCANS = 100
# a colour profile takes up to 255 segments, everything else a few
_MAX_SEGMENTS = 4096
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
# the next marker that is not a stuffed zero, a fill byte or a restart
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
_MARKERS_WITHOUT_LENGTH = frozenset((0x01, 0xD8))


@dataclass(frozen=True)
class PictureLimits:
    """Limits on a picture. Raises ValueError if ``max_pixels`` is above Pillow's own limit."""

    max_pixels: int = 50_000_000
    min_side_px: int = 8
    max_bytes: int = 32 * 2**20

    def __post_init__(self) -> None:
        highest = Image.MAX_IMAGE_PIXELS
        if highest is not None and self.max_pixels > highest:
            raise ValueError(f"max_pixels is {self.max_pixels}; set it to at most {highest}")

    @classmethod
    def of(cls, settings: CommonSettings) -> PictureLimits:
        """Return the configured limits."""
        return cls(settings.image_max_pixels, settings.image_min_side_px, settings.image_max_bytes)


@dataclass(frozen=True)
class Picture:
    """An RGB picture, possibly decoded at a reduced size.

    Attributes:
        image: 8-bit RGB.
        width, height: full size in pixels, EXIF orientation applied.
        scale: 1, 2, 4 or 8; each pixel of ``image`` covers scale x scale pixels of the picture.
        left, top: pixels of the picture, fewer than ``scale``, by which ``image`` begins before the picture does.
        white: the sample value that became white, if the picture has more than 8 bits; else 0.
        orientation: EXIF's of the stored picture, 1 to 8, which is applied.
    """

    image: Image.Image
    width: int
    height: int
    scale: int = 1
    left: int = 0
    top: int = 0
    white: float = 0.0
    orientation: int = 1

    @classmethod
    def of(cls, image: Image.Image, white: float = 0.0, orientation: int = 1) -> Picture:
        """Wrap an image of full size."""
        return cls(image, image.width, image.height, white=white, orientation=orientation)

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height."""
        return self.width, self.height


def open_picture(source: bytes | BinaryIO, limits: PictureLimits = PictureLimits()) -> Image.Image:
    """Decode a picture at its full size to 8-bit RGB; see :func:`open_reduced`."""
    return open_reduced(source, lambda *_: 1, limits).image


def open_reduced(
    source: bytes | BinaryIO,
    max_reduction: Callable[[int, int], float],
    limits: PictureLimits = PictureLimits(),
    before_decoding: Callable[[int], object] = lambda pixels: None,
    white: float = 0.0,
    page: tiff.Page | None = None,
) -> Picture:
    """Decode a picture of any supported format and mode to 8-bit RGB; a JPEG may be reduced.

    CMYK, palette and grey pictures are converted, deeper ones scaled (see :mod:`.depth`), transparent ones laid on
    mid-grey. Of a TIFF with previews the picture itself is read. The size is checked before anything is decoded.

    Args:
        source: the file's bytes, or a seekable binary file.
        max_reduction: returns the largest allowed reduction for a width and height (EXIF orientation applied).
        before_decoding: called with the number of pixels once it is within the limits.
        white: the sample value that is white in the whole data set of a picture of more than 8 bits; 0 if unknown.
        page: of a TIFF, whose only picture is read unless given.

    Raises:
        BadPicture: a JPEG of too many scans or segments, or a subclass: NotAnImage, UnsupportedFormat,
            TruncatedImage, TooManyPixels, TooSmall, Animated.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    _check_jpeg(file)
    image = _open(file, limits, page)
    with image:
        _check_size(image, limits)
        before_decoding(image.width * image.height)
        try:
            stored = image.size
            scale = _reduce(image, max_reduction)
            deep = is_deep(image)
            low = decode_low_bytes(image, lambda: _open(file, limits, page))
            # only now: a PNG's may stand after its pixels, and Pillow transposes a TIFF
            orientation = _orientation(image)
            rgb, found_white = to_rgb(image, low, white)
        except BadPicture:
            raise
        except Exception as error:  # hostile bytes may make a decoder raise anything
            raise _damage_error(error) from error
    del image, low  # free its pixels before transposing the copy
    transpose, *last_to_first = _ORIENTATIONS.get(orientation, (None, None, None))
    upright = rgb if transpose is None else rgb.transpose(transpose)
    if scale == 1:
        return Picture.of(upright, found_white or (65535.0 if deep else 0.0), orientation)
    # blocks begin at the stored picture's first pixel and may end after its last, which the transpose may put first
    beyond = [reduced * scale - whole for reduced, whole in zip(rgb.size, stored, strict=True)]
    width, height = reversed(stored) if orientation in _SWAPS_SIDES else stored
    left, top = (0 if axis is None else beyond[axis] for axis in last_to_first)
    return Picture(upright, width, height, scale, left, top, orientation=orientation)


def read_size(data: bytes) -> tuple[int, int, int]:
    """Return width and height of a picture, its EXIF orientation applied, and that orientation, without decoding it.

    Raises BadPicture.
    """
    with _open(io.BytesIO(data), PictureLimits(), None) as image:
        # Pillow would decode a PNG to look for EXIF after its pixels
        may_turn = not isinstance(image, PngImagePlugin.PngImageFile) or "exif" in image.info
        orientation = _orientation(image) if may_turn else 1
        width, height = reversed(image.size) if orientation in _SWAPS_SIDES else image.size
        return width, height, orientation


def _open(file: BinaryIO, limits: PictureLimits, page: tiff.Page | None) -> ImageFile.ImageFile:
    """Open a picture without decoding it; of a TIFF, the page that is not a preview. Raises BadPicture."""
    try:
        pages = [page] if page else tiff.find_main_pages(file)
        if len(pages) > 1:
            raise _animated("TIFF")
        image = tiff.open_page(file, pages[0]) if pages else Image.open(file, formats=FORMATS)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            if pages and tiff.is_preview_of_raw(image, pages[0]):
                raise UnsupportedFormat(
                    "this kind of TIFF is not read (a camera's raw data behind a preview); convert it to a TIFF or PNG"
                )
            if (count := tiff.count_hidden(image)) > 1:
                raise UnsupportedFormat(
                    f"this kind of TIFF is not read ({count} pictures behind one page); save each as a page of its own"
                )
        # a phone's MPO and HEIC hold previews
        elif getattr(image, "is_animated", False) and image.format not in ("MPO", "HEIF"):
            raise _animated(str(image.format))
        return image
    except BadPicture:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixels(
            f"the picture has too many pixels; at most {limits.max_pixels} are allowed, scale it down"
        ) from error
    except Exception as error:  # hostile bytes may make a parser raise anything
        raise _identify(file, error) from error


def _animated(kind: str) -> Animated:
    video = " or send it as a video, whose frames its pages are" if kind == "TIFF" else ""
    return Animated(f"the picture is a {kind} of several frames; send a single frame{video}")


def is_picture_name(name: str) -> bool:
    """Return whether a file name has a supported picture's suffix."""
    return Path(name).suffix.lower() in SUFFIXES


def _reduce(image: ImageFile.ImageFile, max_reduction: Callable[[int, int], float]) -> int:
    """Set a JPEG to be decoded smaller; return by how much: 1, 2, 4 or 8."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or not image.tile:
        return 1
    width, height = reversed(image.size) if _orientation(image) in _SWAPS_SIDES else image.size
    highest = max_reduction(width, height)
    scale = next((scale for scale in _SCALES if scale <= highest), 1)
    # Pillow takes the largest reduction that leaves at least the size asked for
    if scale == 1 or image.draft("", (image.width // scale, image.height // scale)) is None:
        return 1
    return scale


def _check_size(image: ImageFile.ImageFile, limits: PictureLimits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise TooManyPixels(
            f"the picture is {width} x {height} pixels; at most {limits.max_pixels} pixels are allowed, scale it down"
        )
    if min(width, height) < limits.min_side_px:
        raise TooSmall(f"the picture is {width} x {height} pixels; each side must have at least {limits.min_side_px}")


def _check_jpeg(file: BinaryIO) -> None:
    """Raise BadPicture for a JPEG decompression bomb, without opening it: even that would take long."""
    start = file.read(len(_JPEG_START))
    file.seek(0)
    if start == _JPEG_START:
        excess = _find_excess(file.read())
        file.seek(0)
        if excess:
            raise BadPicture(f"the JPEG has {excess}; save it again with another program")


def _find_excess(data: bytes) -> str | None:
    """Return the part that a JPEG has too many of, if any. Ignore embedded previews and bytes after the picture.

    Each scan costs a pass over the whole picture, however short it is, and segments are read one by one.
    """
    few_scans = data.count(b"\xff\xda") <= _MAX_SCANS
    scans = segments = at = 0
    while found := _MARKER.search(data, at):
        marker, at = found[1][0], found.end()
        if marker == _END_OF_IMAGE or (few_scans and marker == _START_OF_SCAN):
            return None
        scans += marker == _START_OF_SCAN
        segments += 1
        if scans > _MAX_SCANS:
            return f"more than {_MAX_SCANS} scans"
        if segments > _MAX_SEGMENTS:
            return f"more than {_MAX_SEGMENTS} segments"
        if marker not in _MARKERS_WITHOUT_LENGTH:
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return None


def _identify(file: BinaryIO, error: Exception) -> BadPicture:
    """Return why Pillow could not open a file."""
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if not head:
        return NotAnImage(f"the file is empty; {EXPECTED}")
    for offset, magic, name in _OTHER_FORMATS:
        if head[offset:].startswith(magic):
            return UnsupportedFormat(f"the file is a {name}; {EXPECTED}")
    if _HEIF_BRANDS.match(head, 4) and not _HEIF:
        missing = "its server lacks the decoder (pip install 'pose-prior-learner[heic]')"
        return UnsupportedFormat(f"the file is a HEIC, and {missing}; install it or send a JPEG")
    unknown = isinstance(error, UnidentifiedImageError | KeyError)  # not damaged: of no known mode or compression
    if unknown and head.startswith(tiff.STARTS) and (kind := tiff.describe_kind(file)):
        return UnsupportedFormat(f"this kind of TIFF is not read ({kind}); save it with 8 or 16 bits, in grey or RGB")
    is_ours = head.startswith(_SUPPORTED_STARTS) or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")
    if is_ours or _HEIF_BRANDS.match(head, 4) or _AVIF_BRANDS.match(head, 4):
        if not isinstance(error, UnidentifiedImageError):
            return _damage_error(error)
        return TruncatedImage("the picture ends within its first bytes, or these are damaged; send the whole file")
    if is_video(head):
        return UnsupportedFormat(f"the file is a video; {EXPECTED}, or send it by itself in the field video")
    return NotAnImage(f"the file is not a picture; {EXPECTED}")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001  damaged EXIF of a good picture is ignored, as viewers do
        return 1


def _damage_error(error: Exception) -> TruncatedImage:
    reason = str(error) or type(error).__name__
    return TruncatedImage(f"the picture ends early or is damaged ({reason}); send the whole file")


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
