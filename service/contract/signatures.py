"""What a file that is no picture we read may be, told by its first bytes."""

from __future__ import annotations

from .errors import NotAnImage, TruncatedImage, UnsupportedFormat

EXPECTED = "expected a JPEG, PNG, WebP, BMP or TIFF picture"

# formats that people send and we do not read: where they start, how they start, their name
_OTHER_FORMATS = (
    (0, b"GIF8", "GIF"),
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypheix", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftypavif", "AVIF"),
    (0, b"%PDF", "PDF"),
    (0, b"<svg", "SVG"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
)


def unidentified(head: bytes) -> NotAnImage | UnsupportedFormat | TruncatedImage:
    """The error for a file that starts so and was not recognised as a picture."""
    if not head:
        return NotAnImage(f"the file is empty; {EXPECTED}")
    for offset, magic, name in _OTHER_FORMATS:
        if head[offset:].startswith(magic):
            return UnsupportedFormat(f"the file is a {name}; {EXPECTED}")
    if _known_start(head):
        return TruncatedImage("the picture ends within its first bytes, or these are damaged; send the whole file")
    return NotAnImage(f"the file is not a picture; {EXPECTED}")


def _known_start(head: bytes) -> bool:
    riff = head.startswith(b"RIFF") and head[8:12] == b"WEBP"
    starts = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\x00", b"MM\x00*")
    return riff or head.startswith(starts)
