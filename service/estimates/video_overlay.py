"""Draw poses on a video in a separate process: it decodes hostile files, draws, and encodes for browsers.

    python -m service.estimates.video_overlay REQUEST

REQUEST is the JSON of :class:`OverlayRequest`. Exits with 0, or with 1 and the reason on standard output. Frames are
decoded, drawn and encoded one by one as H.264 (yuv420p), and the file's index is moved to its front.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.audio.resampler import AudioResampler
from av.container import InputContainer, OutputContainer
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from model.version.palette import box_rgb
from service.contract.media.boxes import FoundBox
from service.contract.media.video_decoder import decode, limit_resources
from service.contract.media.video_index import UnusableVideo, describe, open_video
from service.contract.media.video_request import DecodeRequest

from .drawing import DrawnLink, keypoint_colour, outline_box
from .pictures import Answer
from .results import StoredOutcomes, final_keypoints

_UNIT = Fraction(1, 90_000)  # of times in the file written
_MAX_SIDE = 3840  # browsers decode no larger H.264
_TRAIL_S, _MAX_TRAIL = 0.6, 40
_SHIFT = 4  # cv2 takes coordinates as integers of 1/16 pixel
_SURE = 0.3  # keypoints of a lower score are rings
_DARK = (16, 18, 24)

Pixels = NDArray[np.uint8]
Trail = deque[tuple[float, NDArray[np.float64]]]  # times and places of keypoints


@dataclass(frozen=True)
class OverlayRequest:
    """What to draw: the video, the file of its frames' outcomes, what is common to all poses, and where to write.

    Attributes:
        links: [i, j, strength] of those to draw.
        names: of the keypoints; empty to draw none.
        boxes: [x, y, width, height] of every frame, as far as they were sent.
    """

    video: dict[str, Any]
    outcomes: str
    output: str
    links: Sequence[Sequence[float]]
    names: Sequence[str]
    boxes: Sequence[Sequence[float]]


class PoseDrawer:
    """A drawer of the poses of consecutive frames: boxes, trails, links, keypoints and names."""

    def __init__(self, request: OverlayRequest) -> None:
        self._links = [DrawnLink(int(i), int(j), strength) for i, j, strength in request.links]
        self._names = request.names
        self._boxes = [FoundBox((x, y, width, height)) for x, y, width, height in request.boxes]
        self._trails: dict[int | None, Trail] = {}
        self._labels: dict[tuple[str, int], Pixels] = {}

    def draw(self, pixels: Pixels, time_s: float, poses: Sequence[Answer]) -> None:
        """Draw on an RGB picture in place."""
        layer = pixels.copy()
        regions = [(pose.get("box"), FoundBox.of_region(pose["region"])) for pose in poses if "region" in pose]
        thickness = max(1, round(min(pixels.shape[:2]) / 400))
        for number, found in regions or [(None, box) for box in self._boxes]:
            colour = box_rgb(number or 0)
            for line in outline_box(found):
                for start, end in pairwise(line):
                    _line(layer, start, end, colour, thickness)
            if number is not None:
                size = max(10, round(min(pixels.shape[:2]) / 30))
                self._write(layer, str(number), np.array(found.box[:2]) + size / 3, size)
        for pose in poses:
            points = final_keypoints(pose)
            places = np.array([(p["x"], p["y"]) for p in points], np.float64)  # None becomes NaN
            trail = self._trails.setdefault(pose.get("box"), deque(maxlen=_MAX_TRAIL))
            while trail and trail[0][0] < time_s - _TRAIL_S:
                trail.popleft()
            trail.append((time_s, places))
            self._draw_landmarks(layer, pose)
            self._draw_pose(layer, trail, places, [p["score"] for p in points], _unit_px(pose, pixels, places))
        cv2.addWeighted(layer, 0.85, pixels, 0.15, 0, dst=pixels)

    def _draw_pose(
        self, layer: Pixels, trail: Trail, places: NDArray[np.float64], scores: Sequence[float | None], unit: float
    ) -> None:
        colours = [tuple(map(int, keypoint_colour(index))) for index in range(len(places))]
        for index, colour in enumerate(colours):
            for age, (start, end) in enumerate(pairwise(place for _, place in trail), 1):
                _line(layer, start[index], end[index], colour, max(1, round(1.2 * unit * age / len(trail))))
        for link in self._links:
            width = max(1, round(unit * (0.5 + 0.8 * link.strength)))
            mean = tuple((a + b) // 2 for a, b in zip(colours[link.i], colours[link.j], strict=True))
            _line(layer, places[link.i], places[link.j], _DARK, width + 2)
            _line(layer, places[link.i], places[link.j], mean, width)
        for index, (place, score) in enumerate(zip(places, scores, strict=True)):
            if not np.isfinite(place).all():
                continue
            is_sure = score is not None and score >= _SURE
            _disc(layer, place, 1.7 * unit, _DARK)
            _disc(layer, place, 1.3 * unit, colours[index])
            if not is_sure:
                _disc(layer, place, 0.7 * unit, _DARK)
            if self._names:
                beside = place + np.array([2 * unit, -2.4 * unit])
                self._write(layer, self._names[index], beside, max(10, round(2.6 * unit)))

    def _draw_landmarks(self, layer: Pixels, pose: Answer) -> None:
        size = max(10, round(min(layer.shape[:2]) / 40))
        for mark in pose.get("landmarks", ()):
            place = np.array([mark["x"], mark["y"]], np.float64)  # None becomes NaN
            if np.isfinite(place).all():
                _disc(layer, place, size / 4, _DARK)
                _disc(layer, place, size / 6, (255, 255, 255))
                self._write(layer, mark["name"], place + size / 3, size)

    def _write(self, layer: Pixels, text: str, place: NDArray[np.float64], size: int) -> None:
        if (text, size) not in self._labels:
            font = ImageFont.load_default(size)
            left, top, right, bottom = font.getbbox(text, stroke_width=1)
            image = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
            ImageDraw.Draw(image).text((1 - left, 1 - top), text, 255, font)
            self._labels[text, size] = np.asarray(image)
        mask = self._labels[text, size]
        x, y = np.rint(place).astype(int).tolist()
        height, width = layer.shape[:2]
        part = layer[
            max(0, y) : max(0, min(height, y + mask.shape[0])), max(0, x) : max(0, min(width, x + mask.shape[1]))
        ]
        cut = mask[max(0, -y) :, max(0, -x) :][: part.shape[0], : part.shape[1], None] / 255
        dark = cv2.dilate(mask, np.ones((3, 3), np.uint8))[max(0, -y) :, max(0, -x) :]
        shade = dark[: part.shape[0], : part.shape[1], None] / 255
        part[:] = (part * (1 - 0.7 * shade)) * (1 - cut) + 255 * cut


def _unit_px(pose: Answer, pixels: Pixels, places: NDArray[np.float64]) -> float:
    """Return a hundredth of the size that a drawing is in proportion to: the box, or the picture."""
    region = pose.get("region")
    side = max(region["width"], region["height"]) if region else max(pixels.shape[:2])
    return float(np.clip(side, 100, 2 * min(pixels.shape[:2]))) / 100


def _fixed(point: NDArray[np.float64]) -> tuple[int, int]:
    x, y = np.rint(np.clip(point, -1e5, 1e5) * 2**_SHIFT).astype(int).tolist()
    return x, y


def _line(layer: Pixels, start: NDArray[np.float64], end: NDArray[np.float64], colour: Any, width: int) -> None:
    if np.isfinite(start).all() and np.isfinite(end).all():
        cv2.line(layer, _fixed(start), _fixed(end), colour, width, cv2.LINE_AA, _SHIFT)


def _disc(layer: Pixels, place: NDArray[np.float64], radius: float, colour: Any) -> None:
    cv2.circle(layer, _fixed(place), max(16, round(radius * 2**_SHIFT)), colour, -1, cv2.LINE_AA, _SHIFT)


class Sound:
    """The first sound track of a video, copied where browsers play it in MP4, else encoded as AAC.

    Sound that can't be decoded ends it: the video goes on without.
    """

    def __init__(self, source: InputContainer, start_s: float, output: OutputContainer) -> None:
        self._output, self._start_s = output, start_s
        track = source.streams.audio[0]
        self._packets = source.demux(track)
        self._resampler = None
        if track.codec_context.name in ("aac", "mp3") and "avi" not in source.format.name:
            self._stream = output.add_stream_from_template(track)
        else:
            self._stream = output.add_stream("aac", rate=track.codec_context.sample_rate, layout="stereo")
            self._resampler = AudioResampler("fltp", "stereo", track.codec_context.sample_rate)
        self._time_s = 0.0

    def write_until(self, time_s: float) -> None:
        """Write the sound up to a time of the video."""
        try:
            while self._time_s <= time_s and (packet := next(self._packets, None)) is not None:
                if packet.pts is not None and packet.time_base is not None:
                    self._time_s = float(packet.pts * packet.time_base) - self._start_s
                    if self._time_s >= 0:
                        self._write(packet)
        except av.FFmpegError:
            self._time_s = float("inf")

    def _write(self, packet: Any) -> None:
        if self._resampler is None:
            shift = round(self._start_s / packet.time_base)
            packet.pts -= shift
            packet.dts = packet.pts
            packet.stream = self._stream
            self._output.mux(packet)
            return
        for frame in packet.decode():
            frame.pts = None  # PyAV counts the samples
            for part in self._resampler.resample(frame):
                self._output.mux(self._stream.encode(part))

    def close(self) -> None:
        """Flush the encoder."""
        if self._resampler is not None:
            self._output.mux(self._stream.encode(None))


def draw_video(request: OverlayRequest) -> None:
    """Draw a video. Raises UnusableVideo if not one frame can be decoded."""
    source = DecodeRequest(**request.video)
    drawer, reformatter = PoseDrawer(request), VideoReformatter()
    outcomes = iter(StoredOutcomes(Path(request.outcomes)))
    with (
        open_video(source) as (container, track),
        av.open(request.output, "w", format="mp4", options={"movflags": "+faststart"}) as output,
    ):
        rate = Fraction(track.average_rate or track.guessed_rate or 25).limit_denominator(1001) / (source.every or 1)
        stream = output.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "20"})
        stream.pix_fmt, stream.time_base = "yuv420p", _UNIT
        stream.codec_context.time_base, stream.thread_count = _UNIT, source.threads
        sound = None
        if container.streams.audio and container.streams.audio[0].codec_context is not None:
            start_s = float((track.start_time or 0) * (track.time_base or 0))
            sound = Sound(container, start_s, output)
        last, width, height = -1, 0, 0
        for index, frame in enumerate(_until_damage(decode(source))):
            pixels = np.ascontiguousarray(frame.pixels)
            outcome = next(outcomes, None)
            while outcome is not None and outcome.index < index:
                outcome = next(outcomes, None)
            drawer.draw(pixels, frame.time_s, outcome.poses if outcome else [])
            if not width:  # H.264 with halved colours has even sides
                shrink = min(1.0, _MAX_SIDE / max(pixels.shape[:2]))
                height, width = (max(2, 2 * round(side * shrink / 2)) for side in pixels.shape[:2])
                stream.width, stream.height = width, height
            picture = av.VideoFrame.from_ndarray(pixels, "rgb24")
            picture = reformatter.reformat(picture, width, height, "yuv420p", threads=1)
            last = picture.pts = max(last + 1, round(frame.time_s / _UNIT))
            picture.time_base = _UNIT
            if sound:
                sound.write_until(frame.time_s)
            output.mux(stream.encode(picture))
        if sound:
            sound.write_until(float(last * _UNIT + 1 / rate))
            sound.close()
        output.mux(stream.encode(None))


def _until_damage(frames: Iterator[Any]) -> Iterator[Any]:
    """Yield frames; damage after the first one ends them, as the estimate says it."""
    is_empty = True
    try:
        for frame in frames:
            is_empty = False
            yield frame
    except UnusableVideo:
        if is_empty:
            raise


def main(arguments: list[str]) -> int:
    """Draw a video and return the exit code."""
    request = OverlayRequest(**json.loads(arguments[0]))
    limit_resources(DecodeRequest(**request.video), writes=True)
    try:
        draw_video(request)
    except (UnusableVideo, av.FFmpegError, OSError, MemoryError) as error:
        print(describe(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
