"""Find each of several moving animals in the frames of a fixed camera: squares of one size, with an identity."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from .bodies import Shape, measure_axis, outline
from .heading import diameter_of, find_headings, measure_shape
from .motion import (
    FILLS_FRAME,
    LARGEST,
    LEAST_WAY,
    NOTHING_MOVES,
    NOTHING_OF_ONE_SIZE,
    SMALLEST,
    WIDEST,
    MotionLocator,
    Pixels,
    Track,
    add_headings,
    difference_to,
    learn_background,
    segment,
    side_of,
    size_confidence,
    smooth_centres,
    squares,
)
from .tracking import LOOKS, Blobs, Paths, track

Floats = NDArray[np.float64]

MOST_ANIMALS = 16
_ENOUGH = 3  # frames with equally many blobs that are needed to learn the usual shape
_BENT = 0.8  # quantile of the usual lengths: a bent body is shorter
_MARKS = 3  # centre x and y and extent of a blob; the shape for headings follows


def can_track() -> bool:
    """Return whether scipy (extra ``video``), which several animals need, is installed."""
    return find_spec("scipy") is not None


class AnimalLocator(MotionLocator):
    """A locator of up to a number of animals, each with an identity."""

    def locate_all(self, animals: int, *, headings: bool = False) -> list[Track]:
        """Return a track for each animal; that of a single one is :meth:`locate`'s.

        A frame in which an animal is not found has no box in its track. A lost animal is not re-identified: the
        next new one takes its track.
        """
        if animals == 1:
            return [self.locate(headings=headings)]
        if reason := self._find_obstacle():
            return [self._not_found(reason)] * animals
        samples = self._sample()
        background, level, sign = learn_background(samples)
        shape, area = None, 0.0
        for _ in range(2):  # first with and then without thin parts
            found = [_find_blobs(sample, difference_to(sample, background, sign), level, area) for sample in samples]
            shape = _measure_usual_shape(found, animals)
            if shape is None:
                return [self._not_found(NOTHING_MOVES)] * animals
            area = shape.area

        def blobs_of(number: int) -> Blobs:
            frame = self._frame(number)
            return _find_blobs(frame, difference_to(frame, background, sign), level, area, headings)

        assert shape is not None
        paths = track(len(self), blobs_of, animals, _MARKS + 3 * headings, shape)
        return self._describe(paths, shape, self._scale(background), headings)

    def _describe(self, paths: Paths, shape: Shape, scale: float, headings: bool) -> list[Track]:
        assert self._size is not None
        found, alone, marks = paths.found, paths.alone, paths.marks
        extent = np.where(found, np.nan_to_num(marks[..., 2]), 0)
        if not alone.any():
            return [self._not_found(NOTHING_OF_ONE_SIZE)] * found.shape[1]
        side = side_of(extent[alone]) * scale
        tracks = []
        for animal in range(found.shape[1]):
            centres = marks[:, animal, :2].copy()
            for row in np.flatnonzero(found[:, animal] & ~alone[:, animal]):
                edge = outline(paths.values[row, animal], shape)
                centres[row] = (edge.min(0) + edge.max(0) + 1) / 2
            own = found[:, animal]
            usual = size_confidence(np.nan_to_num(paths.looks[:, animal, LOOKS - 1]) ** 2 / shape.area)
            confidence = np.where(own, np.where(alone[:, animal], usual, 1 - paths.wrong[:, animal]), 0).clip(0, 1)
            boxes = squares(smooth_centres(centres * scale, own, side), own, side)
            reason = ""
            if side > WIDEST * max(self._size):
                reason = FILLS_FRAME
            elif not own.any():
                reason = "it is not found"
            elif np.ptp(centres[own], axis=0).max() * scale < LEAST_WAY * side:
                reason = "it does not leave its place"
            result = Track(boxes, tuple(confidence.round(3).tolist()), not reason, reason)
            if headings:
                shapes = marks[:, animal, _MARKS:].copy()
                shared = own & ~alone[:, animal]
                shapes[shared] = [_shape_of(values, shape) for values in paths.values[shared, animal]]
                result = add_headings(result, *find_headings(own, shapes, centres, diameter_of(shape.area)))
            tracks.append(result)
        return tracks


def _shape_of(values: Floats, shape: Shape) -> tuple[float, float, float]:
    """Return the shape that :func:`.heading.measure_shape` would measure of a body without thin parts."""
    a, b = shape.half_length * np.exp(values[4]), shape.half_width * np.exp(-values[4])
    axis = (values[2] + np.pi / 2) % np.pi - np.pi / 2
    return float(axis), float(abs(a * a - b * b) / (a * a + b * b)), 0.0


def _find_blobs(frame: Pixels, difference: Pixels, level: float, area: float, has_shape: bool = False) -> Blobs:
    """Find the blobs that are large enough for an animal; with ``has_shape``, keep their shapes for headings."""
    closed, labels, stats, left, top = segment(difference, level, area)
    areas: list[float] = []
    points, looks, marks = [], [], []
    for label in range(1, len(stats)):
        x, y, width, height, size = stats[label].tolist()
        if size < max(1, SMALLEST * area):
            continue
        rows, columns = np.nonzero(labels[y : y + height, x : x + width] == label)
        rows, columns = rows + y, columns + x
        areas.append(size)
        points.append(np.stack([columns + left, rows + top], axis=1).astype(np.float64))
        looks.append([*np.median(frame[rows + top, columns + left], axis=0), size**0.5])
        shape = measure_shape(closed, labels == label) if has_shape else ()
        marks.append([left + x + width / 2, top + y + height / 2, max(width, height), *shape])
    width_of_marks = _MARKS + 3 * has_shape
    return Blobs(areas, points, np.reshape(looks, (-1, LOOKS)), np.reshape(marks, (-1, width_of_marks)))


def _measure_usual_shape(found: Sequence[Blobs], animals: int) -> Shape | None:
    """Return the usual shape of an animal, from the frames with as many blobs as possible; None without a blob."""
    kept = [_leave_out_specks(blobs) for blobs in found]
    for count in range(animals, 0, -1):
        chosen = [points for blobs in kept if len(blobs) == count for points in blobs]
        if len(chosen) >= _ENOUGH * count:
            variances = np.array([measure_axis(points)[2] for points in chosen]).clip(0.25)
            area = float(np.median([len(points) for points in chosen]))
            # those of a filled ellipse are a quarter of its squared half axes
            half_length = 2 * float(np.quantile(variances[:, 0], _BENT)) ** 0.5
            return Shape(half_length, 2 * float(np.median(variances[:, 1])) ** 0.5, area)
    return None


def _leave_out_specks(blobs: Blobs) -> list[Floats]:
    """Return the points of blobs that are not far smaller or larger than the others."""
    if not blobs.areas:
        return []
    middle = float(np.median([area for area in blobs.areas if area >= SMALLEST * max(blobs.areas)]))
    return [
        points
        for area, points in zip(blobs.areas, blobs.points, strict=True)
        if SMALLEST * middle <= area <= LARGEST * middle
    ]
