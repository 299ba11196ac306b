"""A video's file opened with care, and a frame of it as players show it. Only the decoding process imports this."""

from __future__ import annotations

import struct
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from service.contract.media.videos import Order

# nothing that names other files or addresses to be read, as playlists do
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
_FIXED_POINT = 1 << 16
# a display matrix's a, b, c, d (x' = ax + cy, y' = bx + dy; y down) where it turns and mirrors only
_TRANSPOSES = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
}
_STRONGEST_STRETCH = 4.0  # of pixels that are not square; beyond it the file is taken to lie


class Unusable(Exception):  # noqa: N818 - what it is; the decoding program's only error
    """The video, or its rest, can't be used; the message says why."""


def opened(order: Order) -> InputContainer:
    """The file, its streams known. Raises Unusable."""
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file", "max_pixels": str(order.max_pixels)}
    try:
        return av.open(f"file:{order.path}", mode="r", options=options, metadata_errors="replace")
    except av.FFmpegError as error:
        raise Unusable(f"it is not a video that we read, or damaged from its start ({said(error)})") from error


def stream_of(container: InputContainer, order: Order) -> VideoStream:
    """The first stream of moving pictures, held to the limits; a cover picture is none. Raises Unusable."""
    streams = [stream for stream in container.streams.video if Disposition.attached_pic not in stream.disposition]
    if not streams:
        raise Unusable("it holds no moving pictures")
    stream = streams[0]
    codec = stream.codec_context
    if codec is None:
        raise Unusable("its pictures are coded in a way that we do not read")
    if codec.width * codec.height > order.max_pixels:
        raise Unusable(f"its frames are {codec.width} x {codec.height} pixels; at most {order.max_pixels} are read")
    codec.options = {"max_pixels": str(order.max_pixels)}
    codec.thread_type = "AUTO"
    codec.thread_count = order.threads
    return stream


def upright(frame: VideoFrame, stream: VideoStream) -> Image.Image:
    """A frame as a player shows it: RGB, its pixels made square, turned and mirrored as the file says."""
    width, height = frame.width, frame.height
    aspect = float(stream.sample_aspect_ratio or 1)
    if aspect != 1 and 1 / _STRONGEST_STRETCH <= aspect <= _STRONGEST_STRETCH:
        width, height = (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
    pixels = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
    image = Image.fromarray(pixels)
    transpose = _TRANSPOSES.get(_display(frame))
    return image.transpose(transpose) if transpose is not None else image


def _display(frame: VideoFrame) -> tuple[int, int, int, int]:
    side_data: Any = frame.side_data  # its own annotations have another container in mind
    try:
        data = bytes(side_data["DISPLAYMATRIX"])
        matrix = struct.unpack("=9i", data)
    except (KeyError, struct.error):
        return 1, 0, 0, 1
    a, b, c, d = (round(matrix[place] / _FIXED_POINT) for place in (0, 1, 3, 4))
    return a, b, c, d


def said(error: BaseException) -> str:
    """An error in its own words, without the file's address."""
    return str(getattr(error, "strerror", "") or error or type(error).__name__)
