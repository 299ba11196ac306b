"""Convert a loaded picture of any mode to 8-bit RGB.

Values of more than 8 bits are scaled by the range that they were recorded in: cameras of 10, 12 and 14 bits write
files of 16, and divided by 65535 such a picture is black. The range is, in this order, what the file states, what the
caller knows from a whole data set, and the smallest usual one that holds the picture's values.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from .tiff import declared_white, has_sign, is_min_white

MID_GREY = 128

_STRIP_PIXELS = 1_000_000
_DARKEST = 16  # a range this many times the highest value would make the picture black
_DARKEST_STATED = 64  # one that the file itself states is likelier to be meant: a dim picture stays dim
_BRIGHT = 64  # a high byte of 16-bit values that 14 bits do not reach
_COLOUR_BITS = (";16B", ";16L", ";16N")
_GREY_AND_OPACITY = "LA;16B"
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # by which grey of fewer than 8 bits is multiplied as it is decoded


def is_deep(image: ImageFile.ImageFile) -> bool:
    """Return whether an opened, not yet decoded picture has more than 8 bits a channel."""
    return image.mode.startswith("I") or image.mode == "F" or bool(_swapped_tiles(image))


def to_rgb(image: ImageFile.ImageFile, low: Image.Image | None, least: float) -> tuple[Image.Image, float]:
    """Convert a loaded picture to 8-bit RGB; transparent pixels are laid on mid-grey.

    Args:
        low: the low bytes of a picture of 16-bit colours, whose high bytes `image` has, see :func:`decode_low_bytes`.
        least: white in a whole data set; used unless the picture would be black.

    Returns:
        The picture, and the value that became white; 0 if it has 8 bits.
    """
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow takes 32 bits without a sign for ones with it
        is_unsigned = image.mode == "I" and isinstance(image, TiffImageFile) and not has_sign(image)
        highest = max(float(_values(strip, is_unsigned).max()) for _, strip in _strips(image))
        white = _find_white(image, highest, least)
        return _in_strips(image, _grey_scaler(image, white, is_unsigned)), white
    white = 0.0
    if low is not None:
        white = _find_white(image, _highest_colour(image, low), least)
        image = _combine(image, low, white)  # type: ignore[assignment]
    if image.has_transparency_data:
        return _in_strips(image, _paste_on_grey), white
    return image if image.mode == "RGB" else image.convert("RGB"), white


def decode_low_bytes(image: ImageFile.ImageFile, reopen: Callable[[], ImageFile.ImageFile]) -> Image.Image | None:
    """Decode a picture; return the low bytes of 16-bit colours that the high bytes alone would make dark, else None.

    Pillow keeps the high bytes; read as of the other byte order, the low ones.
    """
    _scale_transparency(image)
    has_colours = bool(_swapped_tiles(image))
    image.load()
    if not has_colours or max(int(np.asarray(band).max()) for band in _colours(image)) >= _BRIGHT:
        return None
    again = reopen()
    is_grey = _raw_mode(again.tile[0]) == _GREY_AND_OPACITY
    again.tile = _swapped_tiles(again)
    again.load()
    if not is_grey:
        return again
    _, grey, _, opacity = again.split()
    return Image.merge("RGBA", (grey, grey, grey, opacity))


def _raw_mode(tile: ImageFile._Tile) -> str:
    return str(tile.args[0] if isinstance(tile.args, tuple) else tile.args)


def _scale_transparency(image: ImageFile.ImageFile) -> None:
    """Scale the transparent grey of a PNG as its pixels will be."""
    transparent = image.info.get("transparency")
    if image.format == "PNG" and isinstance(transparent, int) and image.tile:
        image.info["transparency"] = transparent * _GREY_STEPS.get(_raw_mode(image.tile[0]), 1)


def _colours(image: Image.Image) -> list[Image.Image]:
    return [band for name, band in zip(image.getbands(), image.split(), strict=True) if name != "A"]


def _swapped_tiles(image: ImageFile.ImageFile) -> list[ImageFile._Tile]:
    """Return the tiles of a picture of 16-bit colours, as if its bytes were in the other order; else an empty list."""
    swapped = []
    for tile in image.tile if image.format in ("PNG", "TIFF") else []:
        rest = tile.args[1:] if isinstance(tile.args, tuple) else ()
        raw = _raw_mode(tile)
        if not raw.endswith(_COLOUR_BITS) or raw.startswith(("I", "RGBa")):  # "a": multiplied by the opacity
            return []
        is_little = raw.endswith("L") or (raw.endswith("N") and sys.byteorder == "little")
        # read in one order only; its four bytes as four channels
        other = "RGBA" if raw == _GREY_AND_OPACITY else raw[:-1] + ("B" if is_little else "L")
        swapped.append(tile._replace(args=(other, *rest) if rest else other))
    return swapped


def _find_white(image: Image.Image, highest: float, least: float) -> float:
    """Return the value to scale to 255, given the highest one."""
    if image.mode == "F" and highest <= 1:
        white = 1.0
    else:
        bits = max(8, math.ceil(highest).bit_length())
        usual = 15 if bits == 15 and isinstance(image, TiffImageFile) and has_sign(image) else bits + bits % 2
        white = 2.0 ** (usual if bits < 16 else bits) - 1
    declared = declared_white(image) if isinstance(image, TiffImageFile) else 0.0
    for known, darkest in ((declared, _DARKEST_STATED), (least, _DARKEST)):
        if highest <= known < darkest * highest:
            return known
    return white if white < _DARKEST * highest else highest or white


def _highest_colour(high: Image.Image, low: Image.Image) -> float:
    pairs = zip(_colours(high), _colours(low), strict=True)
    return max(
        float(_join_bytes(strip, below.crop((0, top, below.width, top + strip.height))).max())
        for above, below in pairs
        for top, strip in _strips(above)
    )


def _join_bytes(high: Image.Image, low: Image.Image) -> NDArray[np.uint16]:
    joined = np.asarray(high).astype(np.uint16)
    joined <<= 8
    joined |= np.asarray(low)
    return joined


def _combine(high: Image.Image, low: Image.Image, white: float) -> Image.Image:
    result = Image.new(high.mode, high.size)
    has_opacity = high.mode.endswith("A")
    # opacity often has all 16 bits, whatever the colours have
    opaque = white if has_opacity and int(np.asarray(high.getchannel("A")).max()) <= int(white) >> 8 else 65535.0
    for top, strip in _strips(high):
        values = _join_bytes(strip, low.crop((0, top, low.width, top + strip.height)))
        pixels = _scale_table(white)[values]
        if has_opacity:
            pixels[..., -1] = _scale_table(opaque)[values[..., -1]]
        result.paste(Image.fromarray(pixels, high.mode), (0, top))
    return result


def _scale_table(white: float) -> NDArray[np.uint8]:
    table: NDArray[np.uint8] = np.rint(np.arange(65536) * (255 / white)).clip(max=255).astype(np.uint8)
    return table


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    result = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        result.paste(convert(strip), (0, top))
    return result


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _paste_on_grey(image: Image.Image) -> Image.Image:
    backdrop = Image.new("RGBA", image.size, (MID_GREY, MID_GREY, MID_GREY, 255))
    return Image.alpha_composite(backdrop, image.convert("RGBA")).convert("RGB")


def _grey_scaler(image: Image.Image, white: float, is_unsigned: bool) -> Callable[[Image.Image], Image.Image]:
    """Return the conversion of grey of 16 or 32 bits to RGB of 8."""
    transparent = image.info.get("transparency")
    table = _scale_table(white) if image.mode.startswith("I;16") else None
    inverted = isinstance(image, TiffImageFile) and is_min_white(image)

    def convert(strip: Image.Image) -> Image.Image:
        if table is not None:
            grey = table[np.asarray(strip)]
        else:
            grey = np.rint(_values(strip, is_unsigned) * (255 / white)).astype(np.uint8)
        if inverted:
            grey = 255 - grey
        if isinstance(transparent, int):
            grey[np.asarray(strip) == transparent] = MID_GREY
        return Image.fromarray(grey).convert("RGB")

    return convert


def _values(image: Image.Image, is_unsigned: bool) -> NDArray[np.float64] | NDArray[np.uint16]:
    """Return an image's values, with 0 for negative, infinite and NaN ones."""
    values: NDArray[Any] = np.asarray(image)
    if image.mode.startswith("I;16"):
        return values
    values = values.view(np.uint32) if is_unsigned else values
    return np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0).clip(min=0)
