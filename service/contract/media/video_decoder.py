"""Decode one video in a separate process, so that a hostile file cannot harm the caller.

    python -m service.contract.media.video_decoder REQUEST

REQUEST is the JSON of :class:`~.videos.DecodeRequest`. Frames are written to standard output: each a
:data:`~.videos.HEADER` and its RGB pixels. The last message is DONE, or FAILED and a reason; frames before it count.
"""

from __future__ import annotations

import contextlib
import json
import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from .videos import DONE, FAILED, FRAME, HEADER, DecodeRequest, TimedFrame

# excludes playlists and others that make ffmpeg read further files or addresses
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
_FIXED_POINT = 1 << 16
# a display matrix's a, b, c, d (x' = ax + cy, y' = bx + dy; y down)
_TRANSPOSES = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
}
_MAX_PIXEL_ASPECT = 4.0  # beyond it the file's aspect ratio is taken for wrong
_MICROSECOND = 1e-6
_SHORT_S = 0.5  # a complete file may be this much shorter than it says, or a tenth of its length


class UnusableVideo(Exception):  # noqa: N818 - as in errors.py; the decoding program's only error
    """The video, or the rest of it, cannot be used; the message says why."""


@dataclass
class Index:
    """The frames of a video, found by reading its packets without decoding.

    Attributes:
        times: sorted presentation times in the stream's units; empty where the file has none.
        count: frames that are shown.
        keys: (packet position, frame number) of the key frames.
        damage: why the reading ended early; empty where it did not.
    """

    times: array[int] = field(default_factory=lambda: array("q"))
    count: int = 0
    keys: list[tuple[int, int]] = field(default_factory=list)
    damage: str = ""


def decode(request: DecodeRequest) -> Iterator[TimedFrame]:
    """Yield frames of a video, upright and with square pixels: evenly spaced, or one in ``request.every``.

    Evenly spaced frames of a video of more than ``request.max_frames`` frames are the nearest key frames; only these
    are decoded.

    Raises:
        UnusableVideo: nothing can be read, or nothing after the frames yielded.
    """
    index = read_index(request)
    if not index.count:
        raise UnusableVideo(index.damage or "it holds no frame")
    if request.every is None:
        picks = space_evenly(request.count, index.count)
    else:
        picks = list(range(0, index.count, request.every))
        if len(picks) > request.count:
            each = (
                "all of which are asked for"
                if request.every == 1
                else f"each {request.every}th of which is {len(picks)}"
            )
            raise UnusableVideo(f"it has {index.count} frames, {each}; at most {request.count} are read at once")
    with _open(request) as (container, stream):
        if index.count <= request.max_frames or request.every is not None:
            yield from _decode_picks(container, stream, index, picks)
        else:
            yield from _decode_key_frames(container, stream, _nearest_keys(picks, index.keys))
    if index.damage:
        raise UnusableVideo(index.damage)


def space_evenly(count: int, total: int) -> list[int]:
    """Return ``count`` numbers below ``total``, each in the middle of an equal part; all if fewer."""
    if total <= count:
        return list(range(total))
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def read_index(request: DecodeRequest) -> Index:
    """Read a video's packets. Raises UnusableVideo if it can't be opened or lasts longer than the limit."""
    index = Index()
    key_times: list[tuple[int, int | None]] = []
    position, end_s, is_timed = 0, 0.0, True
    with _open(request) as (container, stream):
        length_s = (container.duration or 0) * _MICROSECOND
        start_s = (container.start_time or 0) * _MICROSECOND
        promised = stream.frames
        _check_duration(length_s, request)
        try:
            for packet in container.demux():
                if packet.is_corrupt:
                    index.damage = "the file is damaged or ends early"
                    break
                end_s = max(end_s, _end_s(packet) - start_s)
                _check_duration(end_s, request)
                if packet.stream is not stream or not packet.size:
                    continue
                position += 1
                if packet.is_discard:  # the file says not to show it
                    continue
                index.count += 1
                if packet.is_keyframe:
                    key_times.append((position - 1, packet.pts))
                if packet.pts is None:
                    is_timed = False
                else:
                    index.times.append(packet.pts)
        except av.FFmpegError as error:
            index.damage = f"the file is damaged ({_message(error)})"
    # frames are numbered in the order of showing; in the order of the file where a time is missing
    index.times = array("q", sorted(index.times) if is_timed else ())
    for at, time in key_times:
        index.keys.append((at, at if time is None or not is_timed else bisect_left(index.times, time)))
    # an AVI also counts frames dropped while it was recorded, so a missing count alone is no damage
    is_short = position < promised and end_s < length_s * (1 - 0.5 / promised)
    if not index.damage and (is_short or end_s < length_s - max(_SHORT_S, length_s / 10)):
        index.damage = f"the file ends early: it holds {end_s:.3g} of {length_s:.3g} seconds"
    return index


def _end_s(packet: Packet[Any]) -> float:
    if packet.pts is None or packet.time_base is None:
        return 0.0
    return float((packet.pts + (packet.duration or 0)) * packet.time_base)


def _check_duration(length_s: float, request: DecodeRequest) -> None:
    if length_s > request.max_duration_s:
        raise UnusableVideo(
            f"it lasts {length_s:.0f} seconds; at most {request.max_duration_s:.0f} are allowed, send a part"
        )


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


@contextlib.contextmanager
def _open(request: DecodeRequest) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video and its first stream, cover pictures left out, with the limits set."""
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file", "max_pixels": str(request.max_pixels)}
    try:
        container = av.open(f"file:{request.path}", mode="r", options=options, metadata_errors="replace")
    except av.FFmpegError as error:
        raise UnusableVideo(f"it is not a video in a known format, or damaged ({_message(error)})") from error
    with container:
        streams = [stream for stream in container.streams.video if Disposition.attached_pic not in stream.disposition]
        if not streams:
            raise UnusableVideo("it has no video track; send a video")
        codec = streams[0].codec_context
        if codec is None:
            raise UnusableVideo("its video codec is not supported; convert it, for example to H.264")
        if codec.width * codec.height > request.max_pixels:
            raise UnusableVideo(
                f"its frames are {codec.width} x {codec.height} pixels; at most {request.max_pixels} are read"
            )
        codec.options = {"max_pixels": str(request.max_pixels)}
        codec.thread_type = "AUTO"
        codec.thread_count = request.threads
        yield container, streams[0]


def _decode_picks(
    container: InputContainer, stream: VideoStream, index: Index, picks: list[int]
) -> Iterator[TimedFrame]:
    """Decode from the first frame on and yield those picked."""
    remaining = iter(picks)
    pick = next(remaining)
    counted = good = 0
    for frame in _decode_all(container, stream):
        number = counted if frame.pts is None or not index.times else bisect_left(index.times, frame.pts)
        counted += 1
        if frame.is_corrupt:
            if good:
                raise UnusableVideo(f"it is damaged at frame {number}")
            continue  # a video may be cut out of a longer one right before a key frame
        good += 1
        if number < pick:
            continue
        yield _to_timed(frame, stream, number)
        following = next((later for later in remaining if later > number), None)
        if following is None:
            return
        pick = following


def _decode_all(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Yield every frame. Ignore damage before the first one, raise on damage after it."""
    has_frame = False
    packets = container.demux(stream)
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
                raise UnusableVideo(f"it is damaged ({_message(error)})") from error
            continue
        for frame in decoded:
            has_frame = True
            yield frame


def _decode_key_frames(container: InputContainer, stream: VideoStream, chosen: dict[int, int]) -> Iterator[TimedFrame]:
    """Decode each chosen key frame by itself; leave out damaged ones."""
    last = max(chosen)
    for at, packet in enumerate(packet for packet in container.demux(stream) if packet.size):
        if at in chosen and (frame := _decode_single(stream, packet)) is not None:
            yield _to_timed(frame, stream, chosen[at])
        if at == last:
            return


def _decode_single(stream: VideoStream, packet: Packet[VideoStream]) -> VideoFrame | None:
    decoded: list[VideoFrame] = []
    with contextlib.suppress(av.FFmpegError):
        decoded = [*stream.decode(packet), *stream.decode(None)]
    stream.codec_context.flush_buffers()
    return next((frame for frame in decoded if not frame.is_corrupt), None)


def _to_timed(frame: VideoFrame, stream: VideoStream, number: int) -> TimedFrame:
    """Return a frame as a player shows it: RGB, square pixels, rotated and mirrored as the file says.

    Its time is that of its timestamp, or by the mean frame rate where it has none.
    """
    time_s = 0.0
    if frame.pts is not None and stream.time_base is not None:
        time_s = max(0.0, float((frame.pts - (stream.start_time or 0)) * stream.time_base))
    elif rate := stream.average_rate or stream.guessed_rate:
        time_s = number / float(rate)
    width, height = frame.width, frame.height
    aspect = float(stream.sample_aspect_ratio or 1)
    if aspect != 1 and 1 / _MAX_PIXEL_ASPECT <= aspect <= _MAX_PIXEL_ASPECT:
        width, height = (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
    image = Image.fromarray(frame.reformat(width=width, height=height, format="rgb24").to_ndarray())
    side_data: Any = frame.side_data  # PyAV annotates another container
    with contextlib.suppress(KeyError, struct.error):
        matrix = struct.unpack("=9i", bytes(side_data["DISPLAYMATRIX"]))
        a, b, _, c, d, *_ = (round(value / _FIXED_POINT) for value in matrix)
        if (a, b, c, d) in _TRANSPOSES:
            image = image.transpose(_TRANSPOSES[a, b, c, d])
    return TimedFrame(number, time_s, image)


def _message(error: BaseException) -> str:
    """Return an error's text without the file's path."""
    return str(getattr(error, "strerror", "") or error or type(error).__name__)


def _limit_resources(request: DecodeRequest) -> None:
    """Set this process's memory, CPU and file limits; without them only the parent's clock limits it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    seconds = int(request.timeout_s * request.threads) + 1
    for kind, limit in (
        (resource.RLIMIT_AS, request.memory_bytes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # a lower limit is set already
            resource.setrlimit(kind, (limit, limit))


def _messages(request: DecodeRequest) -> Iterator[bytes]:
    """Yield a header and the pixels of each frame, and end with DONE or FAILED."""
    try:
        for number, time_s, image in decode(request):
            yield HEADER.pack(FRAME, number, image.width, image.height, time_s)
            yield image.tobytes()
        yield HEADER.pack(DONE, 0, 0, 0, 0.0)
        return
    except UnusableVideo as error:
        reason = str(error)
    except (MemoryError, ImportError):  # a part of the decoder could not be loaded for lack of memory
        reason = f"it needs more than {request.memory_bytes} bytes of memory"
    except Exception as error:  # noqa: BLE001  hostile bytes may make a decoder raise anything
        reason = f"it can't be decoded ({_message(error)})"
    data = reason[:1000].encode("utf-8", "replace")
    yield HEADER.pack(FAILED, 0, len(data), 0, 0.0)
    yield data


def main(arguments: list[str]) -> None:
    """Decode a video to standard output; exit quietly if the parent has exited."""
    request = DecodeRequest(**json.loads(arguments[0]))
    _limit_resources(request)
    out = sys.stdout.buffer
    try:
        for message in _messages(request):
            out.write(message)
            out.flush()
    except BrokenPipeError:
        sys.stdout = None  # else Python complains at exit about what it can't flush


if __name__ == "__main__":
    main(sys.argv[1:])
