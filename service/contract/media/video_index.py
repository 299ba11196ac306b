"""Find the frames of a video by reading its packets, without decoding. Part of the decoding process."""

from __future__ import annotations

import contextlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from .video_request import DecodeRequest

_BARE = ("mpegvideo", "h264", "hevc")  # streams without a container: they have no times
# excludes playlists and others that make ffmpeg read further files or addresses
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,asf,flv,ogg,mxf,nut,ivf,yuv4mpegpipe,dv,rm,"
    f"{','.join(_BARE)}"
)
_MICROSECOND = 1e-6
_NO_TIME = -(2**63)
_SHORT_S = 0.5  # a complete file may be this much shorter than it says, or a tenth of its length


class UnusableVideo(Exception):  # noqa: N818 - as in errors.py
    """The video, or the rest of it, cannot be used; the message says why."""


class TooManyFrames(UnusableVideo):
    """More frames are asked for than are read at once."""


@dataclass
class Index:
    """The frames of a video, found by reading its packets without decoding.

    Attributes:
        times: sorted presentation times in the stream's units; empty where the file has none.
        count: frames that are shown.
        keys: (packet position, frame number) of the key frames.
        is_reordered: whether times are those of decoding, as in AVI, in a stream that shows frames in another order.
        damage: why the reading ended early; empty where it did not.
    """

    times: array[int] = field(default_factory=lambda: array("q"))
    count: int = 0
    keys: list[tuple[int, int]] = field(default_factory=list)
    is_reordered: bool = False
    damage: str = ""


@contextlib.contextmanager
def open_video(request: DecodeRequest) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video and its first stream, cover pictures left out, with the limits set."""
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file", "max_pixels": str(request.max_pixels)}
    try:
        container = av.open(f"file:{request.path}", mode="r", options=options, metadata_errors="replace")
    except av.FFmpegError as error:
        raise UnusableVideo(f"it is not a video in a known format, or damaged ({describe(error)})") from error
    with container:
        streams = [stream for stream in container.streams.video if Disposition.attached_pic not in stream.disposition]
        if not streams:
            raise UnusableVideo("it has no video track, or ends before it is described; send a whole video")
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


def read_index(request: DecodeRequest) -> Index:
    """Read a video's packets. Raises UnusableVideo if it can't be opened or lasts longer than the limit."""
    index = Index()
    is_bare = False
    columns = array("q"), array("q")  # times of presentation and of decoding of those shown, in the order of the file
    keys: list[tuple[int, int]] = []  # packet position, place among those shown
    position, end_s = 0, 0.0
    with open_video(request) as (container, stream):
        is_bare = container.format.name in _BARE
        # ffmpeg guesses the length of a stream without a container from the file's size
        length_s = 0.0 if is_bare else (container.duration or 0) * _MICROSECOND
        # a segment of a longer video starts late, and some containers count their length from 0
        start_s = (container.start_time or 0) * _MICROSECOND
        late_s, promised = max(0.0, start_s), stream.frames
        _check_duration(length_s - late_s, request)
        try:
            for packet in container.demux():
                if packet.is_corrupt:
                    index.damage = "the file is damaged or ends early"
                    break
                end_s = max(end_s, _end_s(packet))
                _check_duration(end_s - start_s, request)
                if packet.stream is not stream or not packet.size:
                    continue
                position += 1
                if packet.is_discard:  # the file says not to show it
                    continue
                if packet.is_keyframe:
                    keys.append((position - 1, index.count))
                index.count += 1
                columns[0].append(_NO_TIME if packet.pts is None else packet.pts)
                columns[1].append(_NO_TIME if packet.dts is None else packet.dts)
        except av.FFmpegError as error:
            index.damage = f"the file is damaged ({describe(error)})"
        has_b_frames, unit = stream.codec_context.has_b_frames, float(stream.time_base or 0)
    for column in () if is_bare else columns:
        if _NO_TIME not in column:
            index.is_reordered = bool(has_b_frames) and all(a <= b for a, b in pairwise(column))
            index.times = array("q", sorted(column))
            break
    for at, number in keys:
        time = columns[0][number]
        if time != _NO_TIME and not index.is_reordered:
            # of an open group of pictures, frames that are stored after the key frame are shown before it
            number = max(number, bisect_left(index.times, time))
        index.keys.append((at, number))
    if len(index.times) > 1:
        # an AVI may count in ticks of which many make a frame, and a packet is said to last one
        gaps = sorted(b - a for a, b in pairwise(index.times))
        end_s = max(end_s, (index.times[-1] + gaps[len(gaps) // 2]) * unit)
    # of an AVI without its index the length is guessed by the file's size; the header counts ticks
    length_s = max(length_s, promised * unit)
    end_s += late_s - start_s
    # an AVI also counts frames dropped while it was recorded, so a missing count alone is no damage
    is_short = position < promised and end_s < length_s * (1 - 0.5 / promised)
    if not index.damage and (is_short or end_s < length_s - max(_SHORT_S, (length_s - late_s) / 10)):
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


def describe(error: BaseException) -> str:
    """Return an error's text without the file's path."""
    return str(getattr(error, "strerror", "") or error or type(error).__name__)
