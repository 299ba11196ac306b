"""Read frames of untrusted videos. A separate process (:mod:`.video_decoder`) decodes; only it loads PyAV.

Frames are numbered from 0 in the order of showing. A frame counts as a picture named ``VIDEO#NUMBER``, the number
in six digits: ``walk.mp4#000012``. The pages of a TIFF are frames too; they are read here, as pictures are.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from service.contract.errors import BadPicture

from . import tiff
from .pictures import PictureLimits, iter_pages
from .video_request import (
    DONE,
    FAILED,
    FRAME,
    HEADER,
    TOO_MANY,
    DecodeRequest,
    VideoLimits,
    space_evenly,
)

MISSING = "videos need PyAV, which is not installed: pip install 'pose-prior-learner[video]'"

_CHANNELS = 3
_MAX_PAGES = 1_000_000
_POLL_S = 0.25
_PIPE_BYTES = 2**20
# glibc gives the memory of each frame back to the kernel otherwise, and the next one costs hundreds of page faults
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**26), "MALLOC_TRIM_THRESHOLD_": str(2**28)}
_MAX_REASON_BYTES = 4000


class BadVideo(Exception):  # noqa: N818 - as in errors.py; it never crosses the API by itself
    """The video, or the rest of it, can't be read; the message is written for the user."""


class TooManyFrames(BadVideo):
    """More frames are asked for than may be read; the message is written for the user."""


class NoDecoder(Exception):  # noqa: N818
    """PyAV is not installed; the message names the extra to install."""


class TimedFrame(NamedTuple):
    """A frame of a video.

    Attributes:
        number: index from 0, in display order.
        time_s: display time from the start of the video.
        image: RGB, upright, its pixels square.
        size: full width and height in pixels; those of the image, unless a reduced one was asked for.
    """

    number: int
    time_s: float
    image: Image.Image
    size: tuple[int, int]


def frame_name(video: str, number: int) -> str:
    """Return the name of a video's frame among an upload's pictures."""
    return f"{video}#{number:06d}"


def iter_frames(
    path: Path,
    count: int,
    limits: VideoLimits = VideoLimits(),
    check: Callable[[], None] = lambda: None,
    every: int | None = None,
    longer_side: int | None = None,
    first: int = 0,
) -> Generator[TimedFrame]:
    """Yield up to ``count`` frames, evenly spaced over a video; with ``every``, each ``every``-th from ``first`` on.

    Frames are rotated and mirrored as the file says, their pixels square. One frame is in memory at a time.

    Args:
        check: called several times a second; what it raises ends the decoding.
        every: a video with more than ``count`` such frames raises TooManyFrames before the first.
        longer_side: reduce a video's larger frames to this many pixels, which makes decoding cheaper.
        first: decoding starts at a key frame before it where the file has times, so a late one takes no longer.

    Raises:
        BadVideo: after the frames before the damage, or before any.
        NoDecoder: PyAV is not installed.
    """
    size = path.stat().st_size
    if size > limits.max_bytes:
        raise BadVideo(f"the video has {size} bytes; at most {limits.max_bytes} are allowed")
    with path.open("rb") as file:
        if file.read(4).startswith(tiff.STARTS):
            yield from _iter_pages(file, count, limits, check, every, first)
            return
    if importlib.util.find_spec("av") is None:
        raise NoDecoder(MISSING)
    place = str(path.resolve())
    request = DecodeRequest(
        path=place, count=count, every=every, first=first, longer_side=longer_side, **asdict(limits)
    )
    with subprocess.Popen(  # noqa: S603 - this interpreter and a module of ours
        [sys.executable, "-P", "-m", f"{__package__}.video_decoder", json.dumps(asdict(request))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, **_KEEP_MEMORY},
        bufsize=0,
        pipesize=_PIPE_BYTES,  # a frame in few steps
        start_new_session=True,  # Ctrl-C must not end it: the video would look damaged
    ) as process:
        try:
            yield from _receive(partial(_read, process, limits, check, time.monotonic() + limits.timeout_s), limits)
        finally:
            process.kill()


def _iter_pages(
    file: BinaryIO, count: int, limits: VideoLimits, check: Callable[[], None], every: int | None, first: int
) -> Iterator[TimedFrame]:
    """Yield the pages of a stack as :func:`iter_frames` yields frames."""
    try:
        pages = tiff.find_main_pages(file, _MAX_PAGES)
        numbers = space_evenly(count, len(pages)) if every is None else list(range(first, len(pages), every))
        if len(numbers) > count:
            raise TooManyFrames(f"{len(numbers)} of its {len(pages)} pages are asked for; at most {count} are read")
        seconds = tiff.frame_seconds(file)
        picture_limits = PictureLimits(limits.max_pixels, limits.min_side_px)
        for number, image in iter_pages(file, pages, numbers, picture_limits, check):
            yield TimedFrame(number, number * seconds, image, image.size)
    except (BadPicture, ValueError) as error:
        raise BadVideo(str(error)) from error


def _receive(read: Callable[[int], bytearray], limits: VideoLimits) -> Iterator[TimedFrame]:
    while True:
        kind, number, width, height, *size, time_s = HEADER.unpack(read(HEADER.size))
        if kind == DONE:
            return
        if kind in (FAILED, TOO_MANY):
            reason = read(min(width, _MAX_REASON_BYTES)).decode("utf-8", "replace")
            raise TooManyFrames(reason) if kind == TOO_MANY else BadVideo(reason)
        full_width, full_height = size
        if kind != FRAME or full_width * full_height > limits.max_pixels or not width or not height:
            raise BadVideo(
                f"a frame is {full_width} x {full_height} pixels; at most {limits.max_pixels} are allowed, "
                "scale it down"
            )
        if min(size) < limits.min_side_px:
            raise BadVideo(
                f"its frames are {full_width} x {full_height} pixels; each side must have at least {limits.min_side_px}"
            )
        if width > full_width or height > full_height:
            raise BadVideo(f"a frame is {width} x {height} pixels, more than its full size; it is damaged")
        data = read(width * height * _CHANNELS)
        image = Image.frombytes("RGB", (width, height), data)
        yield TimedFrame(number, time_s, image, (full_width, full_height))


def _read(
    process: subprocess.Popen[bytes], limits: VideoLimits, check: Callable[[], None], deadline: float, size: int
) -> bytearray:
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        check()
        if time.monotonic() > deadline:
            raise BadVideo(f"decoding it took more than {limits.timeout_s:g} seconds; send a shorter or smaller one")
        if select.select([pipe], [], [], _POLL_S)[0]:
            got = process.stdout.readinto(rest)  # type: ignore[attr-defined]  # unbuffered
            if not got:
                code = process.wait()
                end = f"crashed on it (signal {-code})" if code < 0 else f"gave it up (exit code {code})"
                raise BadVideo(f"the decoder {end}")
            rest = rest[got:]
    return data
