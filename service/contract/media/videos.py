"""Read frames of untrusted videos. A separate process (:mod:`.video_decoder`) decodes; only it loads PyAV.

Frames are numbered from 0 in the order of showing. A frame counts as a picture named ``VIDEO#NUMBER``, the number
in six digits: ``walk.mp4#000012``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"))
EXPECTED = "expected an MP4, MOV, AVI, MKV or WebM video"
MISSING = "videos need PyAV, which is not installed: pip install 'pose-prior-learner[video]'"

# messages of the decoding process: kind, number, width, height, seconds from the start
HEADER = struct.Struct("<4Id")
FRAME, DONE, FAILED = 1, 2, 3

_CHANNELS = 3
_POLL_S = 0.25
_READ_BYTES = 2**20
_MAX_REASON_BYTES = 4000
_EBML = b"\x1a\x45\xdf\xa3"
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_STILL_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif", b"avis")


class BadVideo(Exception):  # noqa: N818 - as in errors.py; it never crosses the API by itself
    """The video, or the rest of it, can't be read; the message is written for the user."""


class NoDecoder(Exception):  # noqa: N818
    """PyAV is not installed; the message names the extra to install."""


@dataclass(frozen=True)
class VideoLimits:
    """Limits on a video and on the process that decodes it.

    Attributes:
        max_pixels, min_side_px: of a frame.
        max_bytes: of the file.
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


@dataclass(frozen=True)
class DecodeRequest:
    """The argument of the decoding process.

    Attributes:
        count: frames evenly spaced; with ``every``, the highest number allowed.
        every: yield one frame in this many, from the first on, instead of frames evenly spaced.
    """

    path: str
    count: int
    every: int | None
    max_pixels: int
    max_frames: int
    max_duration_s: float
    timeout_s: float
    memory_bytes: int
    threads: int


def is_video_name(name: str) -> bool:
    """Return whether a file name has a supported video's suffix."""
    return Path(name).suffix.lower() in SUFFIXES


def is_video(head: bytes) -> bool:
    """Return whether a file's first 12 bytes or more are a video's, not an archive's."""
    if head.startswith(_EBML) or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return True
    # a tar starts with a member's name, so the first byte must not be text
    is_box = head[:1] < b"\x20" and head[4:8] in _BOXES
    return is_box and not (head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS)


def frame_name(video: str, number: int) -> str:
    """Return the name of a video's frame among an upload's pictures."""
    return f"{video}#{number:06d}"


@dataclass(frozen=True)
class TimedFrame:
    """A frame of a video.

    Attributes:
        number: from 0, as shown.
        time_s: from the start of the video to when it is shown.
        image: RGB, upright, its pixels square.
    """

    number: int
    time_s: float
    image: Image.Image


def iter_every(
    path: Path,
    every: int,
    most: int,
    limits: VideoLimits | None = None,
    check: Callable[[], None] = lambda: None,
) -> Generator[TimedFrame]:
    """Yield the first frame of a video and each ``every``-th after it; otherwise as :func:`iter_frames`.

    Args:
        most: highest number of frames allowed; a video with more raises BadVideo before the first.
    """
    yield from _iter(path, most, every, limits or VideoLimits(), check)


def iter_frames(
    path: Path, count: int, limits: VideoLimits | None = None, check: Callable[[], None] = lambda: None
) -> Iterator[tuple[int, Image.Image]]:
    """Yield number and RGB picture of up to ``count`` frames evenly spaced over a video.

    Frames are rotated and mirrored as the file says, their pixels square. One frame is in memory at a time.

    Args:
        check: called several times a second; what it raises ends the decoding.

    Raises:
        BadVideo: after the frames before the damage, or before any.
        NoDecoder: PyAV is not installed.
    """
    for frame in _iter(path, count, None, limits or VideoLimits(), check):
        yield frame.number, frame.image


def _iter(
    path: Path, count: int, every: int | None, limits: VideoLimits, check: Callable[[], None]
) -> Iterator[TimedFrame]:
    if importlib.util.find_spec("av") is None:
        raise NoDecoder(MISSING)
    size = path.stat().st_size
    if size > limits.max_bytes:
        raise BadVideo(f"the video has {size} bytes; at most {limits.max_bytes} are allowed")
    with _Decoder(path, count, every, limits, check) as decoder:
        while (frame := decoder.next()) is not None:
            yield frame


class _Decoder:
    """The decoding process of one video, killed at the end of the block."""

    def __init__(
        self, path: Path, count: int, every: int | None, limits: VideoLimits, check: Callable[[], None]
    ) -> None:
        self._limits = limits
        self._check = check
        self._deadline = time.monotonic() + limits.timeout_s
        values = {name: value for name, value in asdict(limits).items() if name in DecodeRequest.__dataclass_fields__}
        request = DecodeRequest(path=str(path.resolve()), count=count, every=every, **values)
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter and a module of ours
            [sys.executable, "-P", "-m", f"{__package__}.video_decoder", json.dumps(asdict(request))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C must not end it: the video would look damaged
        )

    def __enter__(self) -> _Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def next(self) -> TimedFrame | None:
        """Return the next frame, None after the last. Raises BadVideo."""
        kind, number, width, height, time_s = HEADER.unpack(self._read(HEADER.size))
        if kind == DONE:
            return None
        if kind == FAILED:
            raise BadVideo(self._read(min(width, _MAX_REASON_BYTES)).decode("utf-8", "replace"))
        if kind != FRAME or width * height > self._limits.max_pixels or not width or not height:
            raise BadVideo(
                f"a frame is {width} x {height} pixels; at most {self._limits.max_pixels} are allowed, scale it down"
            )
        if min(width, height) < self._limits.min_side_px:
            raise BadVideo(
                f"its frames are {width} x {height} pixels; each side must have at least {self._limits.min_side_px}"
            )
        data = self._read(width * height * _CHANNELS)
        return TimedFrame(number, time_s, Image.frombytes("RGB", (width, height), data))

    def _read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        data = bytearray()
        while len(data) < size:
            self._check()
            if time.monotonic() > self._deadline:
                raise BadVideo(
                    f"decoding it took more than {self._limits.timeout_s:g} seconds; send a shorter or smaller one"
                )
            if select.select([pipe], [], [], _POLL_S)[0]:
                part = os.read(pipe, min(size - len(data), _READ_BYTES))
                if not part:
                    raise BadVideo(f"the decoder {self._describe_exit()}")
                data += part
        return bytes(data)

    def _describe_exit(self) -> str:
        code = self._process.wait()
        return f"crashed on it (signal {-code})" if code < 0 else f"gave it up (exit code {code})"
