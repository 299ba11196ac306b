"""Find the pages of a TIFF without decoding them, open one of them, and name the kinds that are not read.

Pillow's walk over the pages takes time quadratic in their number, and opens the first page whatever it is.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin
from PIL.TiffImagePlugin import II, MM, ImageFileDirectory_v2

STARTS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")

_SUBFILE_TYPE, _OLD_SUBFILE_TYPE, _WIDTH, _HEIGHT = 254, 255, 256, 257
_BITS, _COMPRESSION, _PHOTOMETRIC, _DESCRIPTION, _SAMPLES, _FORMAT = 258, 259, 262, 270, 277, 339
_MAX_SAMPLE_VALUE, _PLANES, _SUB_DIRECTORIES = 281, 284, 330
_SEPARATE = 2
_SIGNED = 2
_PREVIEW_OR_MASK = 0x1 | 0x4
_OLD_PREVIEW = 2
_MAX_PREVIEWS = 64  # pages of a file that is looked at as one picture
_MAX_ENTRIES = 4096  # of one directory; honest ones have some dozens
_SAMPLE_FORMATS = {2: "signed integers", 3: "floating-point numbers", 5: "complex integers", 6: "complex numbers"}
_PHOTOMETRICS = {8: "CIELab", 9: "ICCLab", 32803: "a camera's raw data", 32844: "LogL", 32845: "LogLuv"}
_COMPRESSIONS = {
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
    50001: "WebP",
    50002: "JPEG XL",
}

# raw modes of big-endian files that Pillow leaves as they are, and those of libtiff's answer
_NATIVE = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}

# grey that Pillow decodes, in the byte order or with the meaning of black that its table lacks
TiffImagePlugin.OPEN_INFO.update(
    {
        (MM, 0, (1,), 1, (16,), ()): ("I;16B", "I;16B"),
        (II, 0, (1,), 1, (12,), ()): ("I;16", "I;12"),
        (MM, 0, (1,), 1, (12,), ()): ("I;16", "I;12"),
        (MM, 1, (1,), 1, (12,), ()): ("I;16", "I;12"),
        (MM, 1, (1,), 1, (32,), ()): ("I", "I;32BS"),
    }
)


@dataclass(frozen=True)
class Page:
    """A page: the position of its directory, its size, and whether it is marked as a preview or a mask."""

    offset: int
    width: int
    height: int
    is_extra: bool


def find_pages(file: BinaryIO, at_most: int) -> list[Page]:
    """Return the pages of a TIFF up to a limit; none for another file. Raises ValueError if a page is damaged."""
    return list(_walk(file, at_most))


def find_main_pages(file: BinaryIO, at_most: int = _MAX_PREVIEWS) -> list[Page]:
    """Return the pages that are pictures of their own: neither marked as previews nor at most half as large.

    Raises ValueError if a page is damaged.
    """
    pages = find_pages(file, at_most)
    pages = [page for page in pages if not page.is_extra] or pages
    widest = max((page.width for page in pages), default=0)
    return [page for page in pages if 2 * page.width > widest]


def is_stack(file: BinaryIO) -> bool:
    """Return whether a file is a TIFF of several pictures."""
    try:
        return len(find_main_pages(file)) > 1
    except ValueError:  # damaged
        return False


def frame_seconds(file: BinaryIO) -> float:
    """Return the seconds between the pages of a stack, as ImageJ states them; else 1."""
    tags = _read_tags(file)
    text = tags.get(_DESCRIPTION, "") if tags else ""
    found = re.search(r"^finterval=(\d{1,9}(?:\.\d{1,9})?)\s*$", text, re.MULTILINE) if isinstance(text, str) else None
    return float(found[1]) or 1.0 if found else 1.0


def _walk(file: BinaryIO, at_most: int) -> Iterator[Page]:
    budget = file.seek(0, 2)  # overlapping directories of a hostile file end the walk
    file.seek(0)
    head = file.read(16)
    order = "<" if head.startswith(b"II") else ">"
    is_big = head[2:4] in (b"+\x00", b"\x00+")
    if not head.startswith(STARTS) or len(head) < 16:
        return
    (at,) = struct.unpack_from(order + ("Q" if is_big else "I"), head, 8 if is_big else 4)
    count_format, link_format = (order + "Q", order + "Q") if is_big else (order + "H", order + "I")
    entry = np.dtype([("tag", order + "u2"), ("type", order + "u2"), ("count", link_format), ("value", link_format)])
    seen: set[int] = set()
    while at and at not in seen and len(seen) < at_most and budget > 0:
        seen.add(at)
        file.seek(at)
        counted = file.read(struct.calcsize(count_format))
        (count,) = struct.unpack(count_format, counted) if len(counted) == struct.calcsize(count_format) else (0,)
        data = file.read(min(count, _MAX_ENTRIES) * entry.itemsize)
        link = file.read(struct.calcsize(link_format))
        budget -= len(data)
        is_whole = len(data) == count * entry.itemsize and len(link) == struct.calcsize(link_format)
        tags = _read_numbers(np.frombuffer(data, entry), order) if is_whole else {}
        if min(tags.get(_WIDTH, 0), tags.get(_HEIGHT, 0)) < 1:
            raise ValueError(f"page {len(seen)} of the TIFF is damaged")
        is_extra = bool(tags.get(_SUBFILE_TYPE, 0) & _PREVIEW_OR_MASK) or tags.get(_OLD_SUBFILE_TYPE) == _OLD_PREVIEW
        yield Page(at, tags[_WIDTH], tags[_HEIGHT], is_extra)
        (at,) = struct.unpack(link_format, link)


def _read_numbers(entries: NDArray[Any], order: str) -> dict[int, int]:
    """Return the numbers of a directory that say what its page is."""
    wanted = entries[np.isin(entries["tag"], (_SUBFILE_TYPE, _OLD_SUBFILE_TYPE, _WIDTH, _HEIGHT))]
    numbers = {}
    for tag, kind, value in zip(wanted["tag"].tolist(), wanted["type"].tolist(), wanted["value"], strict=True):
        short = kind == 3  # stands in the first two bytes of the field
        numbers[tag] = struct.unpack(order + "H", value.tobytes()[:2])[0] if short else int(value)
    return numbers


def open_page(file: IO[bytes], page: Page) -> TiffImagePlugin.TiffImageFile:
    """Open a page. Raises whatever Pillow raises; KeyError for a kind that it would decode wrongly."""
    image = Image.open(cast(Any, _PageFile(file, page)), formats=["TIFF"])
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    tags = image.tag_v2
    if tags.get(_PLANES) == _SEPARATE and tags.get(_SAMPLES, 1) > 1 and max(tags.get(_BITS, (1,))) > 8:
        raise KeyError(_PLANES)  # takes two bytes for two pixels
    if image.info["compression"] == "webp":
        raise KeyError(_COMPRESSION)  # its wheels lack this decoder
    if image.mode == "L" and has_sign(image):
        raise KeyError(_FORMAT)  # takes negative values for the brightest
    # libtiff swaps the bytes of what it unpacks, and Pillow would again
    image.tile = [_in_native_order(tile) if tile.codec_name == "libtiff" else tile for tile in image.tile]
    return image


def _in_native_order(tile: ImageFile._Tile) -> ImageFile._Tile:
    assert isinstance(tile.args, tuple)
    raw = _NATIVE.get(tile.args[0], tile.args[0])
    return tile._replace(args=(raw, *tile.args[1:]))


class _PageFile:
    """A TIFF whose header points to one of its pages, as Pillow opens the first one."""

    def __init__(self, file: IO[bytes], page: Page) -> None:
        self._file = file
        file.seek(0)
        head = file.read(8)
        order = "<" if head.startswith(b"II") else ">"
        is_big = head[2:4] in (b"+\x00", b"\x00+")
        at = struct.pack(order + ("Q" if is_big else "I"), page.offset)
        self._head = head + at if is_big else head[:4] + at

    def read(self, size: int = -1) -> bytes:
        """Read bytes; those of the header are changed."""
        at = self._file.tell()
        data = self._file.read(size)
        return self._head[at : at + len(data)] + data[max(0, len(self._head) - at) :] if at < len(self._head) else data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _read_tags(file: BinaryIO) -> ImageFileDirectory_v2 | None:
    """Return the tags of a TIFF's main page; None if they cannot be read."""
    try:
        at = find_main_pages(file, 2)[0].offset
        file.seek(0)
        head = file.read(8)
        if head[2:4] == b"+\x00":
            head += file.read(8)
        tags = ImageFileDirectory_v2(head)
        file.seek(at)
        tags.load(cast(Any, file))
        return tags
    except Exception:  # noqa: BLE001  hostile bytes may make the parser raise anything
        return None


def describe_kind(file: BinaryIO) -> str | None:
    """Return what is unusual about a TIFF that Pillow cannot open; None if it is damaged."""
    file.seek(0)
    if file.read(4) == b"MM\x00+":
        return "a BigTIFF in big-endian order"
    tags = _read_tags(file)
    if tags is None:
        return None
    compression = tags.get(_COMPRESSION, 1)
    if compression not in TiffImagePlugin.COMPRESSION_INFO or compression in _COMPRESSIONS:
        return f"compressed by {_COMPRESSIONS.get(compression, f'method {compression}')}"
    bits, formats, samples = tags.get(_BITS, (1,)), tags.get(_FORMAT, (1,)), tags.get(_SAMPLES, 1)
    if not isinstance(bits, tuple) or not isinstance(formats, tuple):
        return None
    numbers = f"{max(bits)}-bit {_SAMPLE_FORMATS.get(max(formats), 'integers')}"
    channels = f"{samples} channels" if samples != 1 else ""
    channels += " in separate planes" if channels and tags.get(_PLANES) == _SEPARATE else ""
    return ", ".join(filter(None, (numbers, channels, _PHOTOMETRICS.get(tags.get(_PHOTOMETRIC, 1)))))


def count_hidden(image: TiffImagePlugin.TiffImageFile) -> int:
    """Return how many pictures ImageJ or tifffile put behind the only directory of a file; else 1."""
    text = _description(image)
    if image.is_animated:
        return 1
    if found := re.match(r"ImageJ=.*?\bimages=(\d{1,9})\b", text, re.DOTALL):
        return int(found[1])
    found = re.match(r'\{"shape": \[([\d, ]{1,60})\]', text)
    values = math.prod(map(int, re.findall(r"\d+", found[1]))) if found else 0
    return max(1, values // (image.width * image.height * int(image.tag_v2.get(_SAMPLES, 1))))


def declared_white(image: TiffImagePlugin.TiffImageFile) -> float:
    """Return the highest sample value that a file's tags or its microscope's description state, 0 if none."""
    tags = image.tag_v2
    bits = tags.get(_BITS, (0,))
    if isinstance(bits, tuple) and bits[0] == 12:
        return 4095.0
    stated = [float(value) for value in _as_tuple(tags.get(_MAX_SAMPLE_VALUE)) if isinstance(value, int)]
    text = _description(image)
    stated += [2.0 ** int(found) - 1 for found in re.findall(r'\bSignificantBits="(\d{1,2})"', text)]
    if text.startswith("ImageJ="):
        stated += [float(found) for found in re.findall(r"^max=(\d{1,9}(?:\.\d+)?)\s*$", text, re.MULTILINE)]
    return max((value for value in stated if value < 65535), default=0.0)


def is_preview_of_raw(image: TiffImagePlugin.TiffImageFile, page: Page) -> bool:
    """Return whether a page is only the preview of what a camera put behind it, as in a DNG or NEF."""
    return page.is_extra and _SUB_DIRECTORIES in image.tag_v2


def has_sign(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Return whether a TIFF's values are signed integers."""
    return _SIGNED in _as_tuple(image.tag_v2.get(_FORMAT))


def is_min_white(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Return whether a TIFF says that its lowest value is white."""
    return image.tag_v2.get(_PHOTOMETRIC) == 0


def _description(image: TiffImagePlugin.TiffImageFile) -> str:
    text = image.tag_v2.get(_DESCRIPTION, "")
    return text if isinstance(text, str) else ""


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
