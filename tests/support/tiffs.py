"""TIFFs of kinds that Pillow does not write."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MIN_IS_WHITE, MIN_IS_BLACK, RGB = 0, 1, 2
PREVIEW = {254: 1}

Tags = Mapping[int, int | str | tuple[int, ...]]


def tiff_of(*pages: np.ndarray | tuple[np.ndarray, Tags], order: str = "<") -> bytes:
    """Return an uncompressed TIFF; a page is its values (H, W) or (H, W, C), with tags to add or replace."""
    out = bytearray((b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 0))
    link = 4
    for page in pages:
        values, tags = page if isinstance(page, tuple) else (page, {})
        link = _add_page(out, link, values, tags, order)
    return bytes(out)


def _add_page(out: bytearray, link: int, values: np.ndarray, tags: Tags, order: str) -> int:
    height, width, *channels = values.shape
    samples = channels[0] if channels else 1
    formats = {"u": 1, "i": 2, "f": 3, "c": 6}
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    every: dict[int, Any] = {
        256: width,
        257: height,
        258: (8 * values.itemsize,) * samples,
        259: 1,
        262: RGB if samples == 3 else MIN_IS_BLACK,
        273: _append(out, data),
        277: samples,
        278: height,
        279: len(data),
        339: (formats[values.dtype.kind],) * samples,
        **tags,
    }
    entries = b"".join(_entry(out, tag, value, order) for tag, value in sorted(every.items()))
    at = _append(out, struct.pack(order + "H", len(every)) + entries + bytes(4))
    struct.pack_into(order + "I", out, link, at)
    return len(out) - 4


def _entry(out: bytearray, tag: int, value: int | str | Sequence[int], order: str) -> bytes:
    if isinstance(value, str):
        kind, count, data = 2, len(value) + 1, value.encode() + b"\0"
    elif isinstance(value, int):
        kind, count, data = 4, 1, struct.pack(order + "I", value)
    else:
        kind, count, data = 3, len(value), struct.pack(f"{order}{len(value)}H", *value)
    field = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack(order + "I", _append(out, data))
    return struct.pack(order + "HHI", tag, kind, count) + field


def _append(out: bytearray, data: bytes) -> int:
    out += bytes(len(out) % 2)
    at = len(out)
    out += data
    return at
