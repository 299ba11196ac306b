"""Fit labels that state another size of their pictures to the pictures that came, where a request asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .labels import Labels, LabelsError

CHOICES = ("exact", "scale")
"""The values of ``labels_fit``: refuse labels that state another size, or scale and turn them."""
_SWAPPING = (5, 6, 7, 8)  # EXIF orientations whose stored picture is as wide as the shown one is high
_ROUNDING_PX = 1.0  # by which a side of a scaled picture may differ from the exact one


class CameSize(NamedTuple):
    """Width and height in pixels of a picture as it is shown, and its EXIF orientation, 1 to 8."""

    width: int
    height: int
    orientation: int = 1


def fit_labels(labels: Labels, pictures: Mapping[str, CameSize]) -> Labels:
    """Scale labels to the pictures that came, and turn those of the stored orientation as their pictures' EXIF says.

    Labels are scaled where the file states their picture's size, with the same aspect ratio. Those that state the size
    of the stored picture, which is shown turned by a quarter, are turned. A half turn does not change the size:
    labels that state the shown size are taken to be of the shown picture. Labels of other sizes stay, and are refused
    later.

    Args:
        labels: in pixels, or in the square, which stay.
        pictures: by the labels' names.

    Raises:
        LabelsError: the file states no size.
    """
    if labels.in_square:
        return labels
    if labels.sizes is None or not labels.sizes.any():
        raise LabelsError(
            "the labels state no size of their pictures, and labels_fit is scale; add columns width and height, or "
            "leave labels_fit out"
        )
    keypoints, sizes = labels.keypoints.copy(), labels.sizes.copy()
    for row, name in enumerate(labels.names):
        came = pictures.get(name)
        stated = int(sizes[row, 0]), int(sizes[row, 1])
        if came is None or not all(stated) or stated == came[:2]:
            continue
        points = keypoints[row]
        if came.orientation in _SWAPPING and not is_scaled(stated, came[:2]):
            points, stated = turn(points, stated, came.orientation), stated[::-1]
        if is_scaled(stated, came[:2]):
            keypoints[row], sizes[row] = (points + 0.5) * came[:2] / np.array(stated) - 0.5, came[:2]
    keypoints[labels.visibility == 0] = 0
    return replace(labels, keypoints=keypoints, sizes=sizes)


def is_scaled(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether two sizes, width and height, have one aspect ratio, up to whole pixels."""
    (width, height), (other_width, other_height) = size, other
    return (
        abs(width * other_height / height - other_width) <= _ROUNDING_PX
        or abs(height * other_width / width - other_height) <= _ROUNDING_PX
    )


def turn(points: ArrayLike, size: tuple[int, int], orientation: int) -> NDArray[np.float64]:
    """Return points (…, 2) of a stored picture of this size where they are on the shown one.

    ``orientation`` is EXIF's, one that exchanges width and height. Integers are pixel centres.
    """
    x, y = np.moveaxis(np.asarray(points, dtype=np.float64), -1, 0)
    far_x, far_y = size[0] - 1 - x, size[1] - 1 - y
    shown = {5: (y, x), 6: (far_y, x), 7: (far_y, far_x), 8: (y, far_x)}[orientation]
    return np.stack(shown, axis=-1)
