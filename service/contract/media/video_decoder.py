"""Decode one video in a separate process, so that a hostile file cannot harm the caller.

    python -m service.contract.media.video_decoder REQUEST

REQUEST is the JSON of :class:`~.video_request.DecodeRequest`. Frames are written to standard output: each a
:data:`~.video_request.HEADER` and its RGB pixels. The last message is DONE, or FAILED and a reason; frames before it
count.
"""

from __future__ import annotations

import contextlib
import json
import struct
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from .video_index import Index, TooManyFrames, UnusableVideo, describe, open_video, read_index
from .video_request import DONE, FAILED, FRAME, HEADER, TOO_MANY, DecodeRequest, space_evenly

_FIXED_POINT = 1 << 16
_UPRIGHT = False, 1, 1
# a display matrix's a, b, c, d (x' = ax + cy, y' = bx + dy; y down): exchange axes, step of rows, step of columns
_ORIENTATIONS = {
    (-1, 0, 0, 1): (False, 1, -1),
    (-1, 0, 0, -1): (False, -1, -1),
    (1, 0, 0, -1): (False, -1, 1),
    (0, 1, 1, 0): (True, 1, 1),
    (0, 1, -1, 0): (True, 1, -1),
    (0, -1, -1, 0): (True, -1, -1),
    (0, -1, 1, 0): (True, -1, 1),
}
_MAX_PIXEL_ASPECT = 4.0  # beyond it the file's aspect ratio is taken for wrong


class DecodedFrame(NamedTuple):
    """A frame as :class:`~.videos.TimedFrame`, its pixels (H, W, 3) in RGB."""

    number: int
    time_s: float
    pixels: NDArray[np.uint8]


Show = Callable[[VideoFrame, int], DecodedFrame]


def decode(request: DecodeRequest) -> Iterator[DecodedFrame]:
    """Yield frames of a video, upright and with square pixels: evenly spaced, or one in ``request.every``.

    A frame's number is its place among those that the decoder gives, as OpenCV and ffmpeg count: containers may lack
    times, or have one twice. Evenly spaced frames of a video of more than ``request.max_frames`` frames are the
    nearest key frames; only these are decoded.

    Raises:
        UnusableVideo: nothing can be read, or nothing after the frames yielded.
        TooManyFrames.
    """
    index = read_index(request)
    if not index.count:
        raise UnusableVideo(index.damage or "it holds no frame")
    if request.every is not None:
        if (selected := -(-(index.count - request.first) // request.every)) > request.count:
            raise TooManyFrames(
                f"{selected} of its {index.count} frames are asked for; at most {request.count} are read"
            )
        if request.first >= index.count:
            return
    is_empty = True
    with open_video(request) as (container, stream):
        show = _Player(stream, index).show
        if request.every is not None:
            picks = range(request.first, request.first + request.count * request.every, request.every)
            chosen = _decode_picks(container, stream, show, picks, _find_start(index, request.first))
        elif index.count <= request.max_frames:
            chosen = _decode_picks(container, stream, show, space_evenly(request.count, index.count))
        else:
            nearest = _nearest_keys(space_evenly(request.count, index.count), index.keys)
            chosen = _decode_key_frames(container, stream, show, nearest)
        for frame in chosen:
            is_empty = False
            yield frame
    if index.damage or is_empty:
        raise UnusableVideo(index.damage or f"not one of its {index.count} frames can be decoded; they are damaged")


def _nearest_keys(picks: list[int], keys: list[tuple[int, int]]) -> dict[int, int]:
    """Return the key frame nearest to each pick, as {packet position: frame number}."""
    numbers = sorted((number, at) for at, number in keys)
    if not numbers:
        raise UnusableVideo("it is too long to decode completely and has no key frames; send it with key frames")
    nearest = {}
    for pick in picks:
        after = bisect_left(numbers, (pick, -1))
        number, at = min(numbers[max(0, after - 1) : after + 1], key=lambda key: abs(key[0] - pick))
        nearest[at] = number
    return nearest


class _Start(NamedTuple):
    """Where decoding starts: a key frame's packet position, number and presentation time."""

    at: int = 0
    number: int = 0
    time: int | None = None


def _find_start(index: Index, first: int) -> _Start:
    """Return the last key frame but one before a frame, as decoding from one may take until the next to be good."""
    times = index.times
    if index.is_reordered or not times:
        return _Start()  # the frames that come before the key frame would not be known
    before = [(at, number) for at, number in index.keys if 0 < number <= first and times[number - 1] < times[number]]
    if len(before) < 2:
        return _Start()
    at, number = before[-2]
    return _Start(at, number, times[number])


def _decode_picks(
    container: InputContainer, stream: VideoStream, show: Show, picks: Iterable[int], start: _Start = _Start()
) -> Iterator[DecodedFrame]:
    """Decode from the start on and yield those picked, or the next good one."""
    remaining = iter(picks)
    pick: int | None = next(remaining)
    has_good = False
    for number, frame in enumerate(_decode_all(container, stream, start), start.number):
        if frame.is_corrupt:
            if has_good:
                raise UnusableVideo(f"it is damaged at frame {number}")
            continue  # a video may be cut out of a longer one right before a key frame
        has_good = True
        if pick is None:
            return
        if number < pick:
            continue
        yield show(frame, number)
        pick = next((later for later in remaining if later > number), None)


def _packets_from(container: InputContainer, stream: VideoStream, at: int) -> Iterator[Packet[VideoStream]]:
    """Yield packets from a position on; the first one of all is decoded before, see :func:`_decode_key_frames`."""
    position = 0
    for packet in container.demux(stream):
        if packet.size:
            position += 1
            if position <= at:
                if position == 1:
                    _decode_single(stream, packet)
                continue
        yield packet


def _decode_all(container: InputContainer, stream: VideoStream, start: _Start) -> Iterator[VideoFrame]:
    """Yield every frame from the start on. Ignore damage before the first one, raise on damage after it."""
    has_frame = False
    packets = _packets_from(container, stream, start.at)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            decoded = stream.decode(packet)
        except av.error.EOFError:
            return
        except av.FFmpegError as error:
            if has_frame or isinstance(error, av.error.MemoryError):
                raise UnusableVideo(f"it is damaged ({describe(error)})") from error
            continue
        for frame in decoded:
            # of an open group of pictures, frames come that are shown before its key frame
            if not has_frame and start.time is not None and (frame.pts is None or frame.pts < start.time):
                continue
            has_frame = True
            yield frame


def _decode_key_frames(
    container: InputContainer, stream: VideoStream, show: Show, chosen: dict[int, int]
) -> Iterator[DecodedFrame]:
    """Decode each chosen key frame by itself; leave out damaged ones."""
    last = max(chosen)
    for at, packet in enumerate(packet for packet in container.demux(stream) if packet.size):
        # the first packet names the encoder, whose faults the decoder then allows for, as old x264 in 4:4:4
        frame = _decode_single(stream, packet) if at in chosen or not at else None
        if frame is not None and at in chosen:
            yield show(frame, chosen[at])
        if at == last:
            return


def _decode_single(stream: VideoStream, packet: Packet[VideoStream]) -> VideoFrame | None:
    decoded: list[VideoFrame] = []
    with contextlib.suppress(av.FFmpegError):
        decoded = [*stream.decode(packet), *stream.decode(None)]
    stream.codec_context.flush_buffers()
    return next((frame for frame in decoded if not frame.is_corrupt), None)


class _Player:
    """A converter of frames to RGB as a player shows them: square pixels, rotated and mirrored as the file says."""

    def __init__(self, stream: VideoStream, index: Index) -> None:
        self._times, self._is_reordered = index.times, index.is_reordered
        self._unit = float(stream.time_base or 0)
        self._rate = float(stream.guessed_rate or stream.average_rate or 0)
        self._aspect = float(stream.sample_aspect_ratio or 1)
        if not 1 / _MAX_PIXEL_ASPECT <= self._aspect <= _MAX_PIXEL_ASPECT:
            self._aspect = 1.0
        # one for all frames: each starts threads of its own
        self._reformatter = VideoReformatter()
        self._rotation: int | None = None
        self._orientation = _UPRIGHT
        self._last_s = 0.0

    def show(self, frame: VideoFrame, number: int) -> DecodedFrame:
        width, height = frame.width, frame.height
        if self._aspect > 1:
            width = round(width * self._aspect)
        elif self._aspect < 1:
            height = round(height / self._aspect)
        pixels = self._reformatter.reformat(frame, width, height, "rgb24", threads=1).to_ndarray()
        if frame.rotation != self._rotation:
            self._rotation, self._orientation = frame.rotation, _read_orientation(frame)
        exchanged, rows, columns = self._orientation
        if exchanged:
            pixels = pixels.swapaxes(0, 1)
        self._last_s = max(self._last_s, self._time_s(frame.pts, number))
        return DecodedFrame(number, self._last_s, np.ascontiguousarray(pixels[::rows, ::columns]))

    def _time_s(self, pts: int | None, number: int) -> float:
        """Return a frame's time from the first one's, by the mean frame rate where the file has no times."""
        if not self._times:
            return number / self._rate if self._rate else 0.0
        if pts is None or self._is_reordered:
            pts = self._times[min(number, len(self._times) - 1)]
        return (pts - self._times[0]) * self._unit


def _read_orientation(frame: VideoFrame) -> tuple[bool, int, int]:
    # read once a video: the container of side data and its frame hold each other until garbage is collected
    side_data: Any = frame.side_data  # PyAV annotates another container
    with contextlib.suppress(KeyError, struct.error):
        matrix = struct.unpack("=9i", bytes(side_data["DISPLAYMATRIX"]))
        a, b, _, c, d, *_ = (round(value / _FIXED_POINT) for value in matrix)
        return _ORIENTATIONS.get((a, b, c, d), _UPRIGHT)
    return _UPRIGHT


def limit_resources(request: DecodeRequest, *, writes: bool = False) -> None:
    """Set this process's memory, CPU and file limits; without them only the parent's clock limits it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    seconds = int(request.timeout_s * request.threads) + 1
    for kind, limit in (
        (resource.RLIMIT_AS, request.memory_bytes),
        (resource.RLIMIT_CPU, seconds),
        *(() if writes else ((resource.RLIMIT_FSIZE, 0),)),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # a lower limit is set already
            resource.setrlimit(kind, (limit, limit))


def _messages(request: DecodeRequest) -> Iterator[bytes | memoryview]:
    """Yield a header and the pixels of each frame, and end with DONE, TOO_MANY or FAILED."""
    kind = FAILED
    try:
        shrink = _import_shrink() if request.longer_side else None
        for number, time_s, pixels in decode(request):
            full_height, full_width, _ = pixels.shape
            if shrink is not None:
                pixels = shrink(pixels, (full_width, full_height), request.longer_side)
            height, width, _ = pixels.shape
            yield HEADER.pack(FRAME, number, width, height, full_width, full_height, time_s)
            yield pixels.data
        yield HEADER.pack(DONE, 0, 0, 0, 0, 0, 0.0)
        return
    except UnusableVideo as error:
        kind, reason = TOO_MANY if isinstance(error, TooManyFrames) else FAILED, str(error)
    except (MemoryError, ImportError):  # a part of the decoder could not be loaded for lack of memory
        reason = f"it needs more than {request.memory_bytes} bytes of memory"
    except Exception as error:  # noqa: BLE001  hostile bytes may make a decoder raise anything
        reason = f"it can't be decoded ({describe(error)})"
    data = reason[:1000].encode("utf-8", "replace")
    yield HEADER.pack(kind, 0, len(data), 0, 0, 0, 0.0)
    yield data


def _import_shrink() -> Callable[..., NDArray[np.uint8]]:
    from .motion import shrink  # loads OpenCV, which takes memory of the limit

    return shrink


def main(arguments: list[str]) -> None:
    """Decode a video to standard output; exit quietly if the parent has exited."""
    request = DecodeRequest(**json.loads(arguments[0]))
    limit_resources(request)
    out = sys.stdout.buffer
    try:
        for message in _messages(request):
            out.write(message)
            out.flush()
    except BrokenPipeError:
        sys.stdout = None  # else Python complains at exit about what it can't flush


if __name__ == "__main__":
    main(sys.argv[1:])
