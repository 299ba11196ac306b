"""Find the one moving thing in the frames of a fixed camera: a square box of one size for all of them.

Works on small copies of the frames with OpenCV: it has every part (area resampling, morphology, connected components)
in one wheel that needs numpy alone. One thread; frames are kept compressed in a temporary file.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray

from .heading import diameter_of, find_headings, measure_shape

if TYPE_CHECKING:  # the decoding process shrinks frames, and starts faster without them
    from PIL import Image

    from .fitting import Box

Pixels = NDArray[np.uint8]

cv2.setNumThreads(1)  # gateway and worker divide the cores themselves

FEWEST_FRAMES = 8
_MARGIN = 0.15  # on each side of the largest usual extent
LONGER_SIDE = 320  # of the small copies, px
_JPEG_QUALITY = 95
_MOST_SAMPLES = 64  # frames that the background is made of
_SAME_LEVELS = 20  # frames whose blurred grey values differ less than this everywhere count once
_QUANTILE = 0.85  # of the values at a pixel: the background, if the thing is darker than it
_FEWEST_LEVELS = 12.0  # of difference to the background
_NOISE_DEVIATIONS = 6.0
_CONTRAST_SHARE = 0.3  # of the usual highest difference of a frame
_ONE_SIDED = 2.0  # times as many places become darker than brighter, or the reverse
_OPENING = 0.3  # of the square root of the usual area: takes off tails, legs and cables
SMALLEST, LARGEST = 0.25, 4.0  # times the usual area
WIDEST = 0.6  # of the frame's longer side: else a box does not help
LEAST_WAY = 0.25  # of the box's side, that the thing goes
_FOUND = 0.3  # of the frames, to be sure
_SURE = 0.6  # median confidence, to be sure
_NEAR = 0.1  # of the box's side: nearly all steps between frames that follow each other closely are shorter
_WINDOW = 5  # frames of the median filter over time
_SIGMA = 1.5  # frames of the smoothing over time

# reasons why motion is not sure
NOTHING_MOVES = "nothing moves"
NOTHING_LEAVES = "nothing leaves its place"
NOTHING_OF_ONE_SIZE = "nothing of one size moves"
FILLS_FRAME = "what moves fills most of the frame, or the camera moves"


@dataclass(frozen=True)
class Track:
    """Boxes of N frames.

    Attributes:
        boxes: squares of one size; None where nothing was found.
        confidence: N values from 0 to 1.
        sure: whether the camera seems fixed, and one small thing moves before it.
        reason: why it is not sure; empty if it is.
        angles: N headings in degrees, see :mod:`.heading`; None where one is not known. Empty unless requested.
        angle_confidence: N values from 0 to 1, or empty as well.
    """

    boxes: tuple[Box | None, ...]
    confidence: tuple[float, ...]
    sure: bool
    reason: str = ""
    angles: tuple[float | None, ...] = ()
    angle_confidence: tuple[float, ...] = ()


class MotionLocator:
    """A collector of one camera's frames in order of time, which locates the thing in all of them at once.

    Args:
        file: keeps small copies of the frames until the boxes are found; several locators may share it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._places: list[tuple[int, int]] = []  # in the file, and bytes
        self._size: tuple[int, int] | None = None
        self._is_one_size = True

    def __len__(self) -> int:
        return len(self._places)

    def add(self, image: Image.Image, size: tuple[int, int] | None = None) -> None:
        """Add the next frame, RGB; ``size`` is that of the picture if the image is a reduced one."""
        size = size or image.size
        self._is_one_size &= self._size in (None, size)
        self._size = size
        small = shrink(np.asarray(image), size, LONGER_SIDE)
        _, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        self._places.append((self._file.seek(0, os.SEEK_END), self._file.write(data.tobytes())))

    def locate(self, *, headings: bool = False) -> Track:
        """Return the boxes in pixels of the frames, and on request the thing's headings."""
        count = len(self)
        if reason := self._find_obstacle():
            return self._not_found(reason)
        assert self._size is not None
        samples = self._sample()
        background, level, sign = learn_background(samples)
        area = 0.0
        for _ in range(2):  # the usual area, first with and then without thin parts
            areas = np.sort([_find_blob(difference_to(sample, background, sign), level, area)[0] for sample in samples])
            if not areas.any():
                return self._not_found(NOTHING_MOVES)
            area = float(areas[np.searchsorted(areas.cumsum(), areas.sum() / 2)])  # specks in empty frames hardly count
        blobs = np.stack(
            [_find_blob(difference_to(self._frame(i), background, sign), level, area, headings) for i in range(count)]
        )
        relative = blobs[:, 0] / area
        confidence = blobs[:, 1] * size_confidence(relative)
        found = (relative >= SMALLEST) & (relative <= LARGEST)
        confidence[~found] = 0
        if not found.any():
            return self._not_found(NOTHING_OF_ONE_SIZE)
        scale = self._scale(background)
        side = side_of(blobs[found, 4]) * scale
        centres = smooth_centres(blobs[:, 2:4] * scale, found, side)
        boxes = squares(centres, found, side)
        reason = ""
        if side > WIDEST * max(self._size):
            reason = FILLS_FRAME
        elif np.ptp(blobs[found, 2:4], axis=0).max() * scale < LEAST_WAY * side:
            reason = NOTHING_LEAVES
        elif found.mean() < _FOUND or found.sum() < FEWEST_FRAMES:
            reason = f"one thing of one size is found in {found.sum()} of {count} frames only"
        elif np.median(confidence[blobs[:, 0] > 0]) < _SURE:
            reason = "several things move, or the light changes"
        track = Track(boxes, tuple(confidence.round(3).tolist()), not reason, reason)
        if not headings:
            return track
        return add_headings(track, *find_headings(found, blobs[:, 5:], blobs[:, 2:4], diameter_of(area)))

    def _not_found(self, reason: str) -> Track:
        return Track((None,) * len(self), (0.0,) * len(self), False, reason)

    def _find_obstacle(self) -> str:
        """Return why motion can't be found in these frames; empty if it can."""
        if len(self) < FEWEST_FRAMES:
            return f"{len(self)} frames; at least {FEWEST_FRAMES} are needed"
        return "" if self._is_one_size else "the frames have different sizes"

    def _sample(self) -> Pixels:
        chosen = np.unique(np.linspace(0, len(self) - 1, _MOST_SAMPLES).round())
        return np.stack([self._frame(index) for index in chosen])

    def _scale(self, background: Pixels) -> float:
        """Return the pixels of a frame for each of its small copy."""
        assert self._size is not None
        height, width = background.shape[:2]
        return max(self._size) / int(width if self._size[0] >= self._size[1] else height)

    def _frame(self, index: float) -> Pixels:
        start, size = self._places[int(index)]
        self._file.seek(start)
        frame = cv2.imdecode(np.frombuffer(self._file.read(size), np.uint8), cv2.IMREAD_COLOR)
        assert frame is not None
        return frame.astype(np.uint8, copy=False)


def add_headings(track: Track, angles: NDArray[np.float64], confidence: NDArray[np.float64]) -> Track:
    """Return a track with the headings that :func:`.heading.find_headings` found."""
    known = tuple(None if math.isnan(angle) else angle for angle in angles.round(1).tolist())
    return replace(track, angles=known, angle_confidence=tuple(confidence.round(3).tolist()))


def shrink(pixels: Pixels, size: tuple[int, int], longer_side: int) -> Pixels:
    """Reduce pixels (H, W, 3) of a picture of this full size to ``longer_side``; those of a small one stay."""
    scale = max(size) / min(longer_side, max(size))
    width, height = round(size[0] / scale) or 1, round(size[1] / scale) or 1
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def learn_background(samples: Pixels) -> tuple[Pixels, float, int]:
    """Return the background (H, W, 3), the level of difference that is foreground, and the sign of the thing.

    Frames that look the same count once, so a thing that sleeps for most of a video stays out of the background. The
    sign is -1 for a thing darker than the background, 1 for a brighter one, 0 for both; given by where the frames
    become darker or brighter than the median, as a place that the thing left leaves only its own trace.
    """
    height, width = samples.shape[1:3]
    small = [
        cv2.resize(sample, (width // 4 or 1, height // 4 or 1), interpolation=cv2.INTER_AREA) for sample in samples
    ]
    grey = [cv2.GaussianBlur(image.mean(axis=2), (3, 3), 0) for image in small]
    kept: list[int] = []
    for index, image in enumerate(grey):
        if all(cv2.absdiff(image, grey[other]).max() > _SAME_LEVELS for other in kept):
            kept.append(index)
    chosen = samples[kept] if len(kept) >= 3 else samples
    median = _quantile(chosen, 0.5)
    level = _choose_level(chosen, median, 0)
    darker, brighter = (
        np.any([difference_to(sample, median, way) > level for sample in chosen], axis=0).sum() for way in (-1, 1)
    )
    sign = -1 if darker > _ONE_SIDED * brighter else 1 if brighter > _ONE_SIDED * darker else 0
    if not sign:
        return median, level, sign
    background = _quantile(chosen, _QUANTILE if sign < 0 else 1 - _QUANTILE)
    return background, _choose_level(chosen, background, sign), sign


def _quantile(samples: Pixels, share: float) -> Pixels:
    """Return a quantile of each pixel over the samples, without interpolation, which would take floats."""
    rank = round(share * (len(samples) - 1))
    quantile: Pixels = np.partition(samples, rank, axis=0)[rank]
    return quantile


def _choose_level(samples: Pixels, background: Pixels, sign: int) -> float:
    differences = [difference_to(sample, background, sign) for sample in samples]
    noise = 1.4826 * float(np.median([np.median(difference) for difference in differences]))
    contrast = float(np.median([difference.max() for difference in differences]))
    return max(_FEWEST_LEVELS, _NOISE_DEVIATIONS * noise, _CONTRAST_SHARE * contrast)


def difference_to(frame: Pixels, background: Pixels, sign: int) -> Pixels:
    """Return by how much the strongest channel differs (H, W), without a change of the light as a whole."""
    light = np.median(frame[::8, ::8].astype(np.int16) - background[::8, ::8], axis=(0, 1))
    lit = np.asarray(cv2.add(background, np.append(light, 0.0)))
    if sign:
        difference = cv2.subtract(frame, lit) if sign > 0 else cv2.subtract(lit, frame)
    else:
        difference = cv2.absdiff(frame, lit)
    first, second, third = cv2.split(cv2.GaussianBlur(difference, (5, 5), 0))
    return np.asarray(cv2.max(cv2.max(first, second), third), np.uint8)


def _find_blob(difference: Pixels, level: float, area: float, has_shape: bool = False) -> NDArray[np.float64]:
    """Return area, share of the foreground, centre x and y, and extent of the largest blob; zeros without one.

    ``area`` is the usual one, if known: thin parts are then taken off. With ``has_shape``, what
    :func:`.heading.measure_shape` returns follows.
    """
    closed, labels, stats, left, top = segment(difference, level, area)
    if len(stats) < 2:
        return np.zeros(8 if has_shape else 5)
    areas = stats[1:, cv2.CC_STAT_AREA]
    chosen = 1 + int(areas.argmax())
    x, y, width, height, largest = stats[chosen].tolist()
    centre_x, centre_y = left + x + width / 2, top + y + height / 2
    found = [largest, largest / areas.sum(), centre_x, centre_y, max(width, height)]
    shape = measure_shape(closed, labels == chosen) if has_shape else ()
    return np.array([*found, *shape], np.float64)


def segment(
    difference: Pixels, level: float, area: float
) -> tuple[Pixels, NDArray[np.int32], NDArray[np.int32], int, int]:
    """Return the foreground (h, w), 0 or 1, its blobs without thin parts, and where it lies in the frame.

    The blobs are labels (h, w) from 1 and statistics as OpenCV's ``connectedComponentsWithStats`` gives them; then
    come left and top of the part of the frame that has foreground.
    """
    radius = max(1, round(_OPENING * area**0.5 / 2))
    mask, left, top = _crop_to_foreground((difference > level).astype(np.uint8), radius + 2)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    closed = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)).astype(np.uint8, copy=False)
    opened = cv2.morphologyEx(closed, cv2.MORPH_OPEN, kernel).astype(np.uint8, copy=False)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(opened)
    return closed, np.asarray(labels, np.int32), np.asarray(stats, np.int32), left, top


def _crop_to_foreground(mask: Pixels, margin: int) -> tuple[Pixels, int, int]:
    """Cut off what has no foreground and is further from it than the margin; return the rest, its left and its top.

    Most of a frame is background, on which the search for blobs would spend most of its time.
    """
    x, y, width, height = cv2.boundingRect(mask)
    left, top = max(0, x - margin), max(0, y - margin)
    return mask[top : y + height + margin, left : x + width + margin], left, top


def size_confidence(relative: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return confidences from 0 to 1 for areas in units of the usual one; 1 from half of it to twice."""
    return np.clip(np.minimum(2 * relative, 2 / np.maximum(relative, 1e-9)), 0, 1)


def side_of(extents: NDArray[np.float64]) -> float:
    """Return the side of boxes for blobs of these extents, with a margin."""
    return float(np.quantile(extents, 0.9)) * (1 + 2 * _MARGIN)


def squares(centres: NDArray[np.float64], found: NDArray[np.bool_], side: float) -> tuple[Box | None, ...]:
    """Return squares of one side around centres (N, 2); None where nothing was found."""
    return tuple(
        (round(x - side / 2, 2), round(y - side / 2, 2), round(side, 2), round(side, 2)) if is_found else None
        for (x, y), is_found in zip(centres.tolist(), found.tolist(), strict=True)
    )


def smooth_centres(centres: NDArray[np.float64], found: NDArray[np.bool_], side: float) -> NDArray[np.float64]:
    """Smooth the centres over time where frames follow each other closely; elsewhere they stay."""
    rows = np.flatnonzero(found)
    points = centres[rows]
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    if len(rows) < _WINDOW or np.quantile(steps, 0.95) > _NEAR * side:
        return centres
    half = _WINDOW // 2
    padded = np.pad(points, ((half, half), (0, 0)), mode="edge")
    medians = np.median(np.lib.stride_tricks.sliding_window_view(padded, _WINDOW, axis=0), axis=-1)
    smooth = cv2.GaussianBlur(medians, (1, 0), sigmaX=0.01, sigmaY=_SIGMA, borderType=cv2.BORDER_REPLICATE)
    result = centres.copy()
    result[rows] = smooth
    return result
