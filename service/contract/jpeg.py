"""Whether a JPEG is far more work than its size tells, told without decoding it.

Each scan costs as much as a pass over the whole picture, however short it is; and segments are
read one by one, however many there are.
"""

from __future__ import annotations

import re

START = b"\xff\xd8\xff"
# the decoder of JPEG in TIFF draws the same line; encoders write about ten, the most diligent some dozens
MAX_SCANS = 100
# a profile takes at most 255, and the rest is a few
MAX_SEGMENTS = 4096

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
# the next marker that counts: neither a stuffed zero, nor a fill byte, nor a restart
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
_WITHOUT_LENGTH = frozenset((0x01, 0xD8))


def too_costly(data: bytes) -> str | None:
    """What a JPEG has too many of, if so; of its picture itself, not previews inside of it or what follows it."""
    few_scans = data.count(b"\xff\xda") <= MAX_SCANS
    scans = segments = at = 0
    while found := _MARKER.search(data, at):
        marker, at = found[1][0], found.end()
        if marker == _END_OF_IMAGE or (few_scans and marker == _START_OF_SCAN):
            return None
        scans += marker == _START_OF_SCAN
        segments += 1
        if scans > MAX_SCANS:
            return f"more than {MAX_SCANS} scans"
        if segments > MAX_SEGMENTS:
            return f"more than {MAX_SEGMENTS} segments"
        if marker not in _WITHOUT_LENGTH:
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return None
