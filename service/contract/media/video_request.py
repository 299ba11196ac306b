"""What the decoding process of videos is asked, and the messages that it answers with.

Each video gets a process of its own, whose start counts: this module imports nothing that takes long, such as Pillow,
settings and pydantic.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

HEADER = struct.Struct("<6Id")
"""Kind of message; number, width and height of a frame, its full width and height; seconds from the start."""
FRAME, DONE, FAILED, TOO_MANY = 1, 2, 3, 4


@dataclass(frozen=True)
class VideoLimits:
    """Limits on a video and on the process that decodes it.

    Attributes:
        max_pixels, min_side_px: of a frame.
        max_bytes: size limit of the file.
        max_frames: decoded of one video; of a longer one only key frames are read.
        timeout_s: time for decoding one video.
        memory_bytes, threads: of the decoding process.
    """

    max_pixels: int = 50_000_000
    min_side_px: int = 8
    max_bytes: int = 4 * 2**30
    max_frames: int = 20_000
    max_duration_s: float = 4 * 3600.0
    timeout_s: float = 600.0
    memory_bytes: int = 4 * 2**30
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class DecodeRequest(VideoLimits):
    """The argument of the decoding process.

    Attributes:
        count: frames evenly spaced; with ``every``, the highest number allowed.
        every: yield one frame in this many, from the first on, instead of frames evenly spaced.
        first: number of the first frame with ``every``; those long before it are not decoded.
        longer_side: reduce larger frames to this many pixels on their longer side.
    """

    path: str
    count: int
    every: int | None
    first: int = 0
    longer_side: int | None = None


def space_evenly(count: int, total: int) -> list[int]:
    """Return ``count`` numbers below ``total``, each in the middle of an equal part; all if fewer."""
    if total <= count:
        return list(range(total))
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]
