"""Linear maps from learned keypoints to labelled ones, and their errors. Numpy only.

All coordinates are (x, y) in [0, 1] of the image side, which matters for maps without bias.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# learned keypoints (N, K, 2), labels (N, J, 2) and visibility (N, J), non-zero where a label counts, of N pictures
Split = tuple[Array, Array, Array]


def fit_maps(keypoints: Array, labels: Array, visibility: Array, *, bias: bool = True) -> Array:
    """Fit one linear map per labelled keypoint, on the pictures where it is visible, with a bias or without.

    Takes a Split and returns (J, 2K [+ 1], 2). Raises ValueError if a labelled keypoint is visible in no picture.
    """
    check_split(keypoints, labels, visibility)
    inputs = _design(keypoints, bias)
    maps = []
    for joint in range(labels.shape[1]):
        seen = visibility[:, joint] > 0
        if not seen.any():
            raise ValueError(f"labelled keypoint {joint} is visible in none of the {len(seen)} training pictures")
        maps.append(np.linalg.lstsq(inputs[seen], labels[seen, joint], rcond=None)[0])
    return np.stack(maps)


def apply_maps(keypoints: Array, maps: Array) -> Array:
    """Map learned keypoints (N, K, 2) through maps (J, 2K [+ 1], 2) to labelled ones (N, J, 2)."""
    bias = maps.shape[1] % 2 == 1
    mapped: Array = np.einsum("nd,jdc->njc", _design(keypoints, bias), maps)
    return mapped


def error_percent(predicted: Array, labels: Array, visibility: Array) -> float:
    """Return the mean L2 distance over the visible keypoints (N, J, 2) in percent of the image side."""
    check_split(predicted, labels, visibility)
    distance = np.linalg.norm(predicted - labels, axis=-1)
    return float(100 * distance[visibility > 0].mean())


def mean_pose_percent(train_labels: Array, train_visibility: Array, labels: Array, visibility: Array) -> float:
    """Return the error of guessing every keypoint at its mean training position, the baseline of a model."""
    mean = mean_pose(train_labels, train_visibility)
    return error_percent(np.broadcast_to(mean, labels.shape), labels, visibility)


def check_split(keypoints: Array, labels: Array, visibility: Array) -> None:
    """Raise ValueError unless shapes are (N, K, 2), (N, J, 2), (N, J), N is positive and visible values are finite."""
    if keypoints.ndim != 3 or keypoints.shape[-1] != 2 or labels.shape != (*visibility.shape, 2):
        raise ValueError(
            f"keypoints {keypoints.shape}, labels {labels.shape}, visibility {visibility.shape}; "
            "expected (N, K, 2), (N, J, 2), (N, J)"
        )
    if len(keypoints) != len(labels):
        raise ValueError(f"{len(keypoints)} pictures have keypoints and {len(labels)} have labels")
    if not len(keypoints):
        raise ValueError("no pictures to score; expected at least one in each split")
    if not np.isfinite(keypoints).all() or not np.isfinite(labels[visibility > 0]).all():
        raise ValueError("a learned keypoint or a visible label is not finite")


def mean_pose(labels: Array, visibility: Array) -> Array:
    """Return the mean position (J, 2) of each labelled keypoint where it is visible; 0 if it never is."""
    weight = (visibility > 0)[..., None]
    mean: Array = np.where(weight, labels, 0).sum(0) / weight.sum(0).clip(1)
    return mean


def _design(keypoints: Array, bias: bool) -> Array:
    flat = keypoints.reshape(len(keypoints), -1)
    return np.concatenate((flat, np.ones((len(flat), 1))), axis=1) if bias else flat
