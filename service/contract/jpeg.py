"""How many scans a JPEG has, told without decoding it: each costs as much as a pass over the whole picture."""

from __future__ import annotations

import re

# the decoder of JPEG in TIFF draws the same line; encoders write about ten, the most diligent some dozens
MAX_SCANS = 100

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
# the next marker that counts: neither a stuffed zero, nor a fill byte, nor a restart
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
_WITHOUT_LENGTH = frozenset((0x01, 0xD8))


def too_many_scans(data: bytes) -> bool:
    """Whether a JPEG's picture itself, not a preview inside of it or what follows it, has more than MAX_SCANS."""
    if data.count(b"\xff\xda") <= MAX_SCANS:
        return False
    scans, at = 0, 0
    while scans <= MAX_SCANS:
        found = _MARKER.search(data, at)
        if found is None or found[1][0] == _END_OF_IMAGE:
            return False
        scans += found[1][0] == _START_OF_SCAN
        at = found.end()
        if found[1][0] not in _WITHOUT_LENGTH:
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return True
