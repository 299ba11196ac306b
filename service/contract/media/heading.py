"""Tell which way a thing looks from above: the axis of its blob, and which end of it is the head.

What tells the head's end is combined over the frames of a clip, as log-odds of an Ising chain: thin parts, such as a
tail, are behind; a thing goes forwards; and in frames that follow each other it does not turn round at once. Whether
frames follow each other is seen from how little the axis turns between them. Where nothing tells, there is no heading.

Angles are in degrees, clockwise from up: 0 looks up, 90 to the right, as a compass.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

LEAST_CONFIDENCE = 0.2
_ROUNDEST = 0.12  # elongation: a blob that is rounder has no axis
_SHAPE_ODDS = 4.0  # log-odds of an end by thin parts that clearly lie at the other
_CLEAR_LEAN = 0.01
_TRAVEL_ODDS = 4.0  # log-odds of an end by each body length that the thing goes towards it
_COUPLING = 4.0  # half the log-odds of not turning round between two frames
_CORRELATED = 4.0  # by how much less the shape of a frame tells, if it is that of its neighbours
_CONTINUITY = 0.5, 0.9  # mean cosine of twice the turn of the axis: frames have nothing, all to do with each other
_FRONT_LENGTHS, _FRONT_SHARE = 2.0, 0.3  # net way towards thin parts, and share of it, of a thing that has them ahead
_LONGEST_GAP = 5  # frames without the thing, over which it does not turn round
_SIGMA = 1.5  # frames of the smoothing over time


def measure_shape(foreground: Pixels, body: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Return the axis of a body, its elongation, and how far thin parts lie along the axis.

    Args:
        foreground: (H, W), with thin parts.
        body: (H, W), the same without, one component.

    Returns:
        The axis in radians from the x axis, from -π/2 to π/2; the elongation, from 0 for a disc to 1 for a line; the
        sum of the thin parts' distances along the axis, relative to area and diameter of the body.
    """
    solid = body.astype(np.uint8)
    moments = cv2.moments(solid, binaryImage=True)
    area = moments["m00"]
    wide, slanted, high = moments["mu20"] - moments["mu02"], 2 * moments["mu11"], moments["mu20"] + moments["mu02"]
    axis, elongation = math.atan2(slanted, wide) / 2, math.hypot(slanted, wide) / max(high, 1e-9)
    _, labels = cv2.connectedComponents(foreground)
    own = labels == labels[body][0]
    rows, columns = np.nonzero(own & (cv2.dilate(solid, np.ones((3, 3), np.uint8)) == 0))
    along = (columns - moments["m10"] / area) * math.cos(axis) + (rows - moments["m01"] / area) * math.sin(axis)
    return axis, elongation, float(along.sum()) / (area * diameter_of(area))


def diameter_of(area: float) -> float:
    """Return the diameter of a disc of this area."""
    return 2 * math.sqrt(area / math.pi)


def find_headings(found: NDArray[np.bool_], shapes: Floats, centres: Floats, length: float) -> tuple[Floats, Floats]:
    """Return the angle of each of N frames in degrees, NaN where nothing tells, and its confidence from 0 to 1.

    A confidence c means that the head is at this end with a probability of (1 + c) / 2.

    Args:
        found: (N,), whether there is a blob.
        shapes: (N, 3), of :func:`measure_shape`.
        centres: (N, 2), of the blobs.
        length: of the body, in the units of the centres.
    """
    angles, confidence = np.full(len(found), np.nan), np.zeros(len(found))
    rows = np.flatnonzero(found & (shapes[:, 1] >= _ROUNDEST))
    if not len(rows):
        return angles, confidence
    axes = shapes[rows, 0]
    directions = np.stack([np.cos(axes), np.sin(axes)], axis=1)
    turns, gaps, ways = np.diff(axes), np.diff(rows), np.diff(centres[rows], axis=0) / length
    low, high = _CONTINUITY
    continuity = float(np.clip((np.cos(2 * turns).mean() - low) / (high - low), 0, 1)) if len(turns) else 0.0
    follows = continuity * (gaps <= _LONGEST_GAP) * (np.linalg.norm(ways, axis=1) < 1)
    lean = shapes[rows, 2] * _find_side(directions, shapes[rows, 2], ways * follows[:, None])
    odds = -_SHAPE_ODDS * lean / (np.abs(lean) + _CLEAR_LEAN) / (1 + _CORRELATED * continuity)
    for first in (0, 1):  # a step tells of the frames at both of its ends
        ends = slice(first, first + len(ways))
        odds[ends] += _TRAVEL_ODDS / 2 * follows * (directions[ends] * ways).sum(1)
    odds = _combine(odds, _COUPLING * follows * np.cos(turns) / np.maximum(gaps, 1))
    heads, sure = directions * np.sign(odds)[:, None], np.tanh(np.abs(odds) / 2)
    weighted = np.zeros((len(found), 3))
    weighted[rows] = np.column_stack([heads * sure[:, None], sure])
    if continuity == 1:
        weights = np.array(cv2.GaussianBlur(weighted, (1, 0), sigmaX=0.01, sigmaY=_SIGMA))
        known = np.zeros((len(found), 1))
        known[rows] = 1
        share = np.array(cv2.GaussianBlur(known, (1, 0), sigmaX=0.01, sigmaY=_SIGMA)).reshape(-1)
        weighted = weights / np.maximum(share, 1e-9)[:, None]
        weighted[~found] = 0
    # heads that disagree make each other less sure
    confidence = np.hypot(weighted[:, 0], weighted[:, 1])
    told = confidence >= LEAST_CONFIDENCE
    angles[told] = np.degrees(np.arctan2(weighted[told, 0], -weighted[told, 1])) % 360
    return angles, confidence.clip(0, 1)


def _find_side(directions: Floats, lean: Floats, ways: Floats) -> int:
    """Return 1 if thin parts are behind, as a tail; -1 if the thing goes towards them, as with feelers."""
    away = -directions * np.sign(lean)[:, None]
    steps = ((away[:-1] + away[1:]) / 2 * ways).sum(1)
    return -1 if steps.sum() < -max(_FRONT_LENGTHS, _FRONT_SHARE * np.abs(steps).sum()) else 1


def _combine(odds: Floats, couplings: Floats) -> Floats:
    """Return the log-odds (n,) of each member of a chain, given those of each alone and the couplings (n - 1,)."""

    def pass_on(odds: Floats, couplings: Floats) -> Floats:
        came = np.zeros(len(odds))
        for index, coupling in enumerate(np.tanh(couplings).tolist()):
            came[index + 1] = 2 * math.atanh(coupling * math.tanh((odds[index] + came[index]) / 2))
        return came

    return odds + pass_on(odds, couplings) + pass_on(odds[::-1], couplings[::-1])[::-1]
