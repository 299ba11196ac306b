"""Convert pictures of any mode to 8-bit RGB, in strips to keep memory low."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

MID_GREY = 128
_STRIP_PIXELS = 1_000_000


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image to 8-bit RGB: scale 16 and 32 bits down, lay transparent pixels on mid-grey."""
    if image.mode.startswith("I") or image.mode == "F":
        return _in_strips(image, _grey_scaler(image))
    if image.has_transparency_data:
        return _in_strips(image, _paste_on_grey)
    return image if image.mode == "RGB" else image.convert("RGB")


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    result = Image.new("RGB", image.size)
    top = 0
    for strip in _strips(image):
        result.paste(convert(strip), (0, top))
        top += strip.height
    return result


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _paste_on_grey(image: Image.Image) -> Image.Image:
    backdrop = Image.new("RGBA", image.size, (MID_GREY, MID_GREY, MID_GREY, 255))
    return Image.alpha_composite(backdrop, image.convert("RGBA")).convert("RGB")


def _grey_scaler(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return the conversion of 16- or 32-bit grey to 8 bits.

    The range of 32-bit values is the smallest of 1.0 (floats), 8, 16 and 31 bits that holds them all.
    """
    sixteen = image.mode.startswith("I;16")
    transparent = image.info.get("transparency")
    ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    highest = 0.0 if sixteen else max(float(_finite_values(strip).max()) for strip in _strips(image))
    span = next((span for span in ranges if highest <= span), max(highest, 2.0**31 - 1))

    def convert(strip: Image.Image) -> Image.Image:
        values = np.asarray(strip)
        if sixteen:
            grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        else:
            grey = np.rint(_finite_values(strip) * (255 / span)).astype(np.uint8)
        if isinstance(transparent, int):
            grey[values == transparent] = MID_GREY
        return Image.fromarray(grey).convert("RGB")

    return convert


def _finite_values(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return an image's values, with 0 for negative, infinite and NaN ones."""
    values: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = np.asarray(image).astype(np.float64)
    return np.nan_to_num(values, posinf=0.0, neginf=0.0).clip(min=0)
