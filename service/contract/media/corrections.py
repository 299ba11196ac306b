"""Join boxes that were sent for some frames of a fixed camera with those that motion found.

A sent box holds for the frame that it names, and corrects those of motion before and after it for as long as motion's
box stays in its place: there motion sees the same thing, rightly or wrongly. Frames further away keep what motion
found. A sent box without a heading gets that of motion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from .boxes import FoundBox

_NEAR = 0.1  # of its side: motion's box is still in its place


def correct_track(found: Sequence[FoundBox | None], sent: Mapping[int, Sequence[FoundBox]]) -> list[FoundBox | None]:
    """Return motion's boxes of a clip's frames, corrected near the frames for which boxes were sent.

    A sent box moves, scales and turns those of the frames before and after it as it does its own frame's, for as long
    as motion's box stays within a tenth of its side of where it is in the named frame; where nothing is in that frame,
    those have none. Between two of them the nearer one holds. Several boxes of a frame correct no other.

    Args:
        sent: the boxes of frames, by number; none where nothing is in a frame. Motion's boxes of these are returned as
            they are.
    """
    corrected, distance = list(found), dict[int, int]()
    for frame, boxes in sent.items():
        own = found[frame]
        if own is None or len(boxes) > 1:
            continue
        for step in (-1, 1):
            at = frame + step
            while 0 <= at < len(found) and at not in sent and (each := found[at]) and _distance(each, own) <= _NEAR:
                if abs(at - frame) < distance.get(at, len(found)):
                    distance[at] = abs(at - frame)
                    corrected[at] = _move(each, own, boxes[0]) if boxes else None
                at += step
    return corrected


def _distance(one: FoundBox, other: FoundBox) -> float:
    """Return the distance between the centres of boxes in sides of the second one."""
    (x, y, width, height), (other_x, other_y, side, other_height) = one.box, other.box
    return math.hypot(x - other_x + (width - side) / 2, y - other_y + (height - other_height) / 2) / side


def _move(box: FoundBox, start: FoundBox, end: FoundBox) -> FoundBox:
    """Move, scale and turn a box by the difference between two others, from ``start`` to ``end``."""
    values = [value + to - by for value, by, to in zip(box.box, start.box, end.box, strict=True)]
    angle = box.angle
    if angle is not None and start.angle is not None and end.angle is not None:
        angle = round((angle + end.angle - start.angle) % 360, 1)
    x, y, width, height = (round(value, 2) for value in values)
    return replace(box, box=(x, y, width, height), angle=angle)


def take_heading(sent: list[FoundBox], found: FoundBox | None) -> list[FoundBox]:
    """Return the boxes that were sent for a frame; one without an angle gets that of what motion found in it."""
    if found is None or found.angle is None:
        return sent
    angle, confidence = found.angle, found.angle_confidence
    return [
        replace(each, angle=angle, angle_confidence=confidence)
        if each.angle is None and _distance(each, found) <= 0.5
        else each
        for each in sent
    ]
