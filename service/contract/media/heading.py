"""Find the heading of a thing seen from above: the axis of its blob, and the end of the axis at which its head is.

The evidence for the head's end is combined over the frames of a clip, as log-odds of an Ising chain: thin parts, such
as a tail, are behind; a thing moves forwards; and between consecutive frames it does not turn round. Frames count as
consecutive if the axis hardly rotates between them. Without evidence there is no heading.

Angles are in degrees clockwise from up: 0 is up, 90 is right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

MIN_CONFIDENCE = 0.2  # of a heading; a less sure one is not known
_MIN_ELONGATION = 0.12  # a rounder blob has no axis
_SHAPE_ODDS = 4.0  # log-odds of an end if thin parts clearly lie at the other
_CLEAR_LEAN = 0.01  # offset of thin parts at which they give half of that
_TRAVEL_ODDS = 4.0  # log-odds of an end for each body length that the thing moves towards it
_COUPLING = 4.0  # half the log-odds of not turning round between two frames
_CORRELATED = 4.0  # how much the evidence of a shape is reduced, as consecutive frames have the same one
_CONTINUITY = 0.5, 0.9  # mean cosine of twice the axis's rotation, of unrelated and of consecutive frames
_FRONT_LENGTHS, _FRONT_SHARE = 2.0, 0.3  # least net and relative movement towards thin parts that lie ahead
_LONGEST_GAP = 5  # frames between two with the thing, over which it does not turn round
_SIGMA = 1.5  # of the smoothing over time, in frames
_KNOWN_SHARE, _SURE = 0.9, 0.8  # of frames with a heading, and their mean confidence, of a thing seen from above
_MOST_UPRIGHT = 0.6  # resultant length of twice the headings; 1 if the axis never turns
_FEWEST_FRAMES = 16
# of a thing that rears, seen from the side: its steep headings are up, and it goes along the ground
_STEEP = math.cos(math.radians(45))  # cosine of the angle to the vertical
_MOST_DOWN = 0.2  # of the steep headings
_ALONG_GROUND = 0.35  # -1 if it goes up and down only, 1 if to the left and right only, 0 if to all sides
_FRAMES_APART = 16  # at most, between which the way is measured: rearing moves it up and down in fewer
_FAR = 2.0  # body lengths; a longer way counts as this


def measure_shape(foreground: Pixels, body: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Return the axis of a body, its elongation, and the offset of its thin parts along the axis.

    Args:
        foreground: (H, W), 0 or 1, with thin parts.
        body: (H, W), one component of it without thin parts.

    Returns:
        The axis in radians from the x axis, from -π/2 to π/2; the elongation, from 0 for a disc to 1 for a line; the
        sum over the thin parts' pixels of their offset along the axis, relative to the body's area times its diameter.
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
    """Return the angle of each of N frames in degrees, NaN where it is not known, and its confidence from 0 to 1.

    A confidence c means that the head is at this end of the axis with a probability of (1 + c) / 2.

    Args:
        found: (N,), whether the frame has a blob.
        shapes: (N, 3), from :func:`measure_shape`.
        centres: (N, 2), of the blobs, in pixels.
        length: of the body, in the same pixels.
    """
    angles, confidence = np.full(len(found), np.nan), np.zeros(len(found))
    rows = np.flatnonzero(found & (shapes[:, 1] >= _MIN_ELONGATION))
    if not len(rows):
        return angles, confidence
    axes = shapes[rows, 0]
    directions = np.stack([np.cos(axes), np.sin(axes)], axis=1)
    turns, gaps, steps = np.diff(axes), np.diff(rows), np.diff(centres[rows], axis=0) / length
    low, high = _CONTINUITY
    continuity = float(np.clip((np.cos(2 * turns).mean() - low) / (high - low), 0, 1)) if len(turns) else 0.0
    follows = continuity * (gaps <= _LONGEST_GAP) * (np.linalg.norm(steps, axis=1) < 1)
    lean = shapes[rows, 2] * _find_side(directions, shapes[rows, 2], steps * follows[:, None])
    odds = -_SHAPE_ODDS * lean / (np.abs(lean) + _CLEAR_LEAN) / (1 + _CORRELATED * continuity)
    for first in (0, 1):  # a step is evidence for the frames at both of its ends
        ends = slice(first, first + len(steps))
        odds[ends] += _TRAVEL_ODDS / 2 * follows * (directions[ends] * steps).sum(1)
    odds = _combine(odds, _COUPLING * follows * np.cos(turns) / np.maximum(gaps, 1))
    heads, sure = directions * np.sign(odds)[:, None], np.tanh(np.abs(odds) / 2)
    weighted = np.zeros((len(found), 3))
    weighted[rows] = np.column_stack([heads * sure[:, None], sure])
    if continuity == 1:
        weights = np.array(cv2.GaussianBlur(weighted, (1, 0), sigmaX=0.01, sigmaY=_SIGMA))
        has_axis = np.zeros((len(found), 1))
        has_axis[rows] = 1
        share = np.array(cv2.GaussianBlur(has_axis, (1, 0), sigmaX=0.01, sigmaY=_SIGMA)).reshape(-1)
        weighted = weights / np.maximum(share, 1e-9)[:, None]
        weighted[~found] = 0
    # smoothing over frames that disagree lowers the confidence
    confidence = np.hypot(weighted[:, 0], weighted[:, 1])
    known = confidence >= MIN_CONFIDENCE
    angles[known] = np.degrees(np.arctan2(weighted[known, 0], -weighted[known, 1])) % 360
    return angles, confidence.clip(0, 1)


def is_seen_from_above(
    angles: Sequence[float | None], confidence: Sequence[float | None], centres: Floats | None = None
) -> bool:
    """Return whether a thing seems to be seen from above: its headings are known, and its axis lies in all directions.

    From the side, the axis of an animal that stands or walks hardly turns; if it often rears, it does so head up, and
    goes along the ground.

    Args:
        angles: of the frames with a box, in degrees; None where the heading is not known.
        confidence: from 0 to 1; None counts as sure, as of boxes drawn by hand.
        centres: (N, 2), of the boxes, in body lengths; without them it is not known how the thing goes.
    """
    known = [angle for angle in angles if angle is not None]
    sure = [1.0 if each is None else each for angle, each in zip(angles, confidence, strict=True) if angle is not None]
    if len(known) < max(_FEWEST_FRAMES, _KNOWN_SHARE * len(angles)) or float(np.mean(sure)) < _SURE:
        return False
    if abs(np.exp(2j * np.radians(known)).mean()) > _MOST_UPRIGHT:
        return False
    return centres is None or not (_is_head_up(np.array(known)) and _goes_along_ground(centres))


def _is_head_up(angles: Floats) -> bool:
    """Return whether nearly all steep headings are up."""
    upwards = np.cos(np.radians(angles))
    steep = np.abs(upwards) >= _STEEP
    return bool((upwards[steep] < 0).sum() < _MOST_DOWN * steep.sum())


def _goes_along_ground(centres: Floats) -> bool:
    """Return whether a thing goes to the left and right much more than up and down."""
    apart = max(1, min(_FRAMES_APART, len(centres) // 8))
    across, down = (centres[apart:] - centres[:-apart]).T
    way = np.hypot(across, down)
    weights = np.minimum(way, _FAR)
    along = weights * (across**2 - down**2) / np.maximum(way, 1e-9) ** 2
    return bool(along.sum() >= _ALONG_GROUND * max(weights.sum(), 1e-9))


def _find_side(directions: Floats, lean: Floats, steps: Floats) -> int:
    """Return 1 if thin parts are behind, like a tail; -1 if the thing moves towards them, like feelers."""
    away = -directions * np.sign(lean)[:, None]
    ahead = ((away[:-1] + away[1:]) / 2 * steps).sum(1)
    return -1 if ahead.sum() < -max(_FRONT_LENGTHS, _FRONT_SHARE * np.abs(ahead).sum()) else 1


def _combine(odds: Floats, couplings: Floats) -> Floats:
    """Return the marginal log-odds (n,) of an Ising chain, by belief propagation.

    Args:
        odds: (n,), of each member alone.
        couplings: (n - 1,), half the log-odds of two neighbours being equal.
    """

    def pass_messages(odds: Floats, couplings: Floats) -> Floats:
        messages = np.zeros(len(odds))
        for index, coupling in enumerate(np.tanh(couplings).tolist()):
            messages[index + 1] = 2 * math.atanh(coupling * math.tanh((odds[index] + messages[index]) / 2))
        return messages

    return odds + pass_messages(odds, couplings) + pass_messages(odds[::-1], couplings[::-1])[::-1]
