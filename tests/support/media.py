"""Small videos and a HEIC picture, which no library here writes, and damage on purpose."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Container
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

# red at the top left of blue, 96 x 64, stored turned and with its rotation beside it, as phones do
TURNED_HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAWBtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAA"
    "AAAERAAAEAAQAAAAABhAABAAAAAAAAAFoAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA4GlwcnAA"
    "AADAaXBjbwAAAHhodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQArQgEBA3AAAAMAkA"
    "AAAwAAAwAeoCCBhZbqSSmubgIaDAgAAAMAyAAAAwAIQGIAAQAHRAHBcrAiQAAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAA"
    "YAAAABBwaXhpAAAAAAMICAgAAAAJaXJvdAMAAAAYaXBtYQAAAAAAAAABAAEFgQIDBIUAAABibWRhdAAAAFYoAa8GOFr8/TfyGT/kf0dXf//VA4"
    "qvEJj7dsTb8/b//8Lvdv/agpLf//+XgMX+Gx/f5nHZ8ZRrCesnMfSOIcJ714tHQ+/vMcg/0NycRJemxlB/odvz4A=="
)

_MUXERS = {"mkv": "matroska", "m4v": "mp4", "ts": "mpegts", "m2ts": "mpegts", "mpg": "mpeg", "wmv": "asf", "ogv": "ogg"}
_MUXERS |= {"y4m": "yuv4mpegpipe", "m2v": "mpeg2video"}
_CODECS = {"mp4": "libx264", "m4v": "mpeg4", "mov": "mjpeg", "avi": "mpeg4", "mkv": "libx264", "webm": "libvpx"}


def encode_video(
    frames: int = 12,
    kind: str = "mp4",
    size: tuple[int, int] | None = None,
    codec: str = "",
    gop: int = 4,
    orientation: tuple[int, bool] = (0, False),
    aspect: Fraction | None = None,
    sound: bool = False,
    first: int = 0,
    dropped: Container[int] = (),
    rate: int = 25,
    b_frames: int = 0,
    start: int = 0,
    options: dict[str, str] | None = None,
) -> bytes:
    """Return a video's bytes. Frame n is grey of level 4(n + first), with a red square in its left upper corner.

    Those dropped are not in it, as where a camera's program could not keep up. ``start`` is the first one's time in
    frames, as in a segment of a longer video.

    It is 48 x 32 unless ``size`` is given, but 64 x 64 from x265, which writes beyond its memory in smaller pictures.
    """
    width, height = size or ((64, 64) if codec == "libx265" else (48, 32))
    muxer = _MUXERS.get(kind, kind)
    muxing = {"movflags": "+faststart"} if muxer in ("mp4", "mov") else {}
    muxing |= {"mpegts_m2ts_mode": "1"} if kind == "m2ts" else {}
    with (
        tempfile.NamedTemporaryFile(suffix=f".{kind}") as file,  # some muxers read again what they wrote
        av.open(file.name, "w", format=muxer, options=muxing) as container,
    ):
        stream = container.add_stream(codec or _CODECS[kind], rate=rate, options=options)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuvj420p" if stream.codec_context.name == "mjpeg" else "yuv420p"
        stream.gop_size = gop
        if b_frames:
            stream.codec_context.max_b_frames = b_frames
        stream.thread_count = 1
        if orientation != (0, False):
            stream.set_display_rotation(orientation[0], hflip=orientation[1])
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        track = container.add_stream("aac", rate=16_000, layout="mono") if sound else None
        for number in range(frames):
            pixels = np.full((height, width, 3), min(255, 4 * (number + first)), dtype=np.uint8)
            pixels[: height // 4, : height // 4] = (255, 0, 0)
            if number in dropped:
                continue
            frame = av.VideoFrame.from_ndarray(pixels)
            if dropped or start:
                frame.pts, frame.time_base = number + start, Fraction(1, rate)
            container.mux(stream.encode(frame))
            if track is not None:
                samples = av.AudioFrame.from_ndarray(np.zeros((1, 640), dtype=np.float32), format="fltp", layout="mono")
                samples.sample_rate = 16_000
                samples.pts = 640 * number
                container.mux(track.encode(samples))
        container.mux(stream.encode())
        if track is not None:
            container.mux(track.encode())
        container.close()
        return Path(file.name).read_bytes()


def zero_payload(video: bytes, which: Container[int] | None = None) -> bytes:
    """Return a video whose container is whole and whose frames are zeros: all, or those stored in these places."""
    data = bytearray(video)
    with av.open(io.BytesIO(video)) as container:
        for place, packet in enumerate(container.demux(video=0)):
            if packet.size and (which is None or place in which):
                at = data.index(bytes(packet))
                data[at : at + packet.size] = bytes(packet.size)
    return bytes(data)
