"""The program that decodes one video, in a process of its own: what a hostile file does to it harms nothing else.

    python -m service.contract.media.video_decoder ORDER

ORDER is the JSON of a :class:`~service.contract.media.videos.Order`. Frames leave on standard output, each a
:data:`~service.contract.media.videos.HEADER` (kind, number, width, height) and the bytes of its RGB pixels.
The last message is DONE, or FAILED with a reason of that many bytes; frames that came before count.
"""

from __future__ import annotations

import contextlib
import json
import sys
from bisect import bisect_left
from collections.abc import Iterator
from typing import BinaryIO

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from service.contract.videofile import Unusable, opened, said, stream_of, upright
from service.contract.videoindex import Index, evenly, index_of, nearest

from .videos import DONE, FAILED, FRAME, HEADER, Order

Shown = tuple[int, float, Image.Image]  # number from 0, seconds from the start, RGB picture


def frames(order: Order) -> Iterator[Shown]:
    """Frames of a video, upright and with square pixels: evenly spaced, or each so-many-th.

    Evenly spaced, a video of more than ``order.max_frames`` frames gives of its key frames those nearest to
    where the others would be taken, and only these are decoded.

    Raises:
        Unusable: nothing can be read, or nothing after the frames that came.
    """
    index = index_of(order)
    if not index.count:
        raise Unusable(index.damage or "it holds no frame")
    if order.every is None:
        picks = evenly(order.count, index.count)
    else:
        picks = list(range(0, index.count, order.every))
        if len(picks) > order.count:
            each = f"each {order.every}th of which is {len(picks)}" if order.every > 1 else "each of which is asked for"
            raise Unusable(f"it has {index.count} frames, {each}; at most {order.count} are read at once")
    with opened(order) as container:
        stream = stream_of(container, order)
        if index.count <= order.max_frames or order.every is not None:
            yield from _all(container, stream, index, picks)
        else:
            yield from _keys(container, stream, nearest(picks, index.keys))
    if index.damage:
        raise Unusable(index.damage)


def _all(container: InputContainer, stream: VideoStream, index: Index, picks: list[int]) -> Iterator[Shown]:
    """Decode from the first frame on, and give those that were picked."""
    wanted = iter(picks)
    pick = next(wanted)
    counted = good = 0
    for frame in _decoded(container, stream):
        number = counted if frame.pts is None or not index.times else bisect_left(index.times, frame.pts)
        counted += 1
        if frame.is_corrupt:
            if good:
                raise Unusable(f"it is damaged at frame {number}")
            continue  # a video may be cut out of a longer one right before a key frame
        good += 1
        if number < pick:
            continue
        yield number, _time_s(frame, stream, number), upright(frame, stream)
        following = next((later for later in wanted if later > number), None)
        if following is None:
            return
        pick = following


def _decoded(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Every frame; damage before the first one is passed over, damage after it is told."""
    some = False
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            decoded = stream.decode(packet)
        except av.FFmpegError as error:
            if isinstance(error, av.error.EOFError):
                return
            if some or isinstance(error, av.error.MemoryError):
                raise Unusable(f"it is damaged ({said(error)})") from error
            continue
        for frame in decoded:
            some = True
            yield frame


def _keys(container: InputContainer, stream: VideoStream, chosen: dict[int, int]) -> Iterator[Shown]:
    """Decode the chosen key frames, each as if it were alone; one that is damaged is left out."""
    left = len(chosen)
    at = 0
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if at in chosen:
            frame = _alone(stream, packet)
            if frame is not None:
                yield chosen[at], _time_s(frame, stream, chosen[at]), upright(frame, stream)
            left -= 1
            if not left:
                return
        at += 1


def _alone(stream: VideoStream, packet: Packet[VideoStream]) -> VideoFrame | None:
    decoded: list[VideoFrame] = []
    with contextlib.suppress(av.FFmpegError):
        decoded = [*stream.decode(packet), *stream.decode(None)]
    stream.codec_context.flush_buffers()
    return next((frame for frame in decoded if not frame.is_corrupt), None)


def _time_s(frame: VideoFrame, stream: VideoStream, number: int) -> float:
    """When a frame is shown, by its own stamp; by the mean rate where it has none."""
    if frame.pts is not None and stream.time_base is not None:
        return max(0.0, float((frame.pts - (stream.start_time or 0)) * stream.time_base))
    rate = stream.average_rate or stream.guessed_rate
    return number / float(rate) if rate else 0.0


def _confine(order: Order) -> None:
    """Limits that the system holds this process to; where it knows none, only the parent's clock does."""
    try:
        import resource
    except ImportError:  # Windows
        return
    seconds = int(order.timeout_s * order.threads) + 1
    for kind, most in (
        (resource.RLIMIT_AS, order.memory_bytes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # a harder limit holds already
            resource.setrlimit(kind, (most, most))


def _send(out: BinaryIO, kind: int, number: int, width: int, height: int, data: bytes, time_s: float = 0.0) -> None:
    out.write(HEADER.pack(kind, number, width, height, time_s))
    out.write(data)
    out.flush()


def main(arguments: list[str]) -> None:
    """Decode, send, and end with DONE or FAILED; quietly where nobody reads any more."""
    order = Order(**json.loads(arguments[0]))
    _confine(order)
    out = sys.stdout.buffer
    try:
        try:
            for number, time_s, image in frames(order):
                _send(out, FRAME, number, image.width, image.height, image.tobytes(), time_s)
        except Unusable as error:
            reason = str(error)
        except (MemoryError, ImportError):  # a part of the decoder that could not be loaded any more
            reason = f"it needs more than {order.memory_bytes} bytes of memory"
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001  hostile bytes may make a decoder raise anything
            reason = f"it can't be decoded ({said(error)})"
        else:
            _send(out, DONE, 0, 0, 0, b"")
            return
        data = reason[:1000].encode("utf-8", "replace")
        _send(out, FAILED, 0, len(data), 0, data)
    except BrokenPipeError:
        sys.stdout = None  # else Python complains at exit about what it can't flush


if __name__ == "__main__":
    main(sys.argv[1:])
