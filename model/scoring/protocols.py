"""Protocols to score keypoints learned without labels: linear maps from all learned keypoints of a picture to the
labelled ones are fitted on training pictures and applied to held-out ones. Numpy only.

All coordinates are (x, y) in [0, 1] of the image side, which matters for maps without bias.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .linear_maps import Array, Split, apply_maps, check_split, error_percent, fit_maps, mean_pose, mean_pose_percent

_SCALE = 255  # of the summed error: a picture of 256 pixels, corner to corner
_MIN_SWAPS = 10  # the fit of whole poses ends when fewer poses change
_MAX_ROUNDS = 100  # the fit may not converge: swaps minimise mean distances, maps squared ones
_OUTLIER_DEVIATIONS = 3
_OTHER = {"left": "right", "right": "left", "l": "r", "r": "l"}
# of a word of a keypoint's name: the word itself, its start or end, its first or last letter
_SIDES = [re.compile(side, re.I) for side in (r"^(left|right|l|r)$", r"^(left|right)|(left|right)$", "^[lr]", "[lr]$")]


def evaluate(train: Split, heldout: Split, swap: Sequence[int] | None = None) -> dict[str, Any]:
    """Score by every protocol that applies, each with the error of guessing the mean pose.

    - "headline": :func:`per_keypoint` with bias, the project's own number.
    - "per_keypoint": without bias, as CUB is scored.
    - "whole_pose": :func:`whole_pose`, as Human3.6m is scored. Without ``swap``, or if it can't be fitted,
      "whole_pose_left_out" gives the reason.
    - "summed": :func:`summed_errors`, as Taichi is scored.

    ``swap`` gives for each labelled keypoint its partner on the other side, or itself; see :func:`sides`.

    Returns:
        The protocols' numbers, and "train_images", "heldout_images", "labelled_keypoints" (number of those scored),
        "left_out_keypoints" (indices of those visible in no training or no held-out picture), "fewest_fitted" (number
        of pictures with the least visible one) and "map_inputs" (2K + 1; fewer pictures than inputs overfit).

    Raises:
        ValueError: shapes do not match, a value is not finite, or no labelled keypoint is visible in both parts.
    """
    for split in (train, heldout):
        check_split(*split)
    if train[0].shape[1] != heldout[0].shape[1] or train[1].shape[1] != heldout[1].shape[1]:
        raise ValueError(
            f"training pictures have {train[0].shape[1]} keypoints and {train[1].shape[1]} labels, "
            f"held-out ones {heldout[0].shape[1]} and {heldout[1].shape[1]}"
        )
    counts = (train[2] > 0).sum(0)
    kept = np.flatnonzero((counts > 0) & (heldout[2] > 0).any(0))
    if not len(kept):
        raise ValueError(f"none of {len(counts)} labelled keypoints is visible in training and in held-out pictures")
    scored, against = _select(train, kept), _select(heldout, kept)
    numbers: dict[str, Any] = {
        "headline": headline(scored, against),
        "per_keypoint": per_keypoint(scored, against, bias=False),
        "summed": summed_errors(scored, against),
    }
    if swap is not None:
        partners = _check_swap(swap, len(counts))
        paired = np.flatnonzero(np.isin(np.arange(len(counts)), kept) & np.isin(partners, kept))
        within = np.searchsorted(paired, partners[paired])
        try:
            numbers["whole_pose"] = whole_pose(_select(train, paired), _select(heldout, paired), within.tolist())
        except ValueError as error:
            numbers["whole_pose_left_out"] = str(error)
    else:
        numbers["whole_pose_left_out"] = (
            "no two keypoints are named as the left and right of one another, such as left_eye and right_eye"
        )
    return numbers | {
        "train_images": len(train[0]),
        "heldout_images": len(heldout[0]),
        "labelled_keypoints": len(kept),
        "left_out_keypoints": sorted(set(range(len(counts))) - set(kept.tolist())),
        "fewest_fitted": int(counts[kept].min()),
        "map_inputs": 2 * train[0].shape[1] + 1,
    }


def headline(train: Split, heldout: Split) -> dict[str, float]:
    """Score by the project's own headline: :func:`per_keypoint` with bias."""
    return per_keypoint(train, heldout, bias=True)


def per_keypoint(train: Split, heldout: Split, *, bias: bool) -> dict[str, float]:
    """Score with one map per labelled keypoint, fitted where it is visible; CUB's protocol without ``bias``.

    Returns:
        "error_percent", the mean L2 distance over the visible held-out keypoints in percent of the image side, and
        "mean_pose_percent", that of guessing each keypoint's mean training position.
    """
    maps = fit_maps(*train, bias=bias)
    return {
        "error_percent": error_percent(apply_maps(heldout[0], maps), heldout[1], heldout[2]),
        "mean_pose_percent": mean_pose_percent(train[1], train[2], heldout[1], heldout[2]),
    }


def whole_pose(train: Split, heldout: Split, swap: Sequence[int]) -> dict[str, float]:
    """Score by Human3.6m's protocol: one map for the whole pose, without bias, that ignores left and right.

    In each round, training poses whose swapped labels lie nearer to the mapped keypoints are swapped, until fewer than
    ten change. Poses more than three standard deviations above the mean distance are then dropped, and the map is
    fitted again. A held-out pose counts as it is or swapped, whichever is nearer.

    A pose's distance is the mean L2 distance of its visible keypoints, and each keypoint is fitted where it is visible;
    if all are visible, this is the paper's one map. Pictures without a visible keypoint are ignored.

    Returns:
        "error_percent" and "mean_pose_percent", means over the held-out poses in percent of the image side.

    Raises:
        ValueError: ``swap`` is not a pairing, there are no keypoints, or one is visible in no training picture left.
    """
    partners = _check_swap(swap, train[1].shape[1])
    if not len(partners):
        raise ValueError("no keypoint's two sides are both visible in training and in held-out pictures")
    keypoints, labels, visibility = _drop_unlabelled(train)
    labels, visibility = labels.copy(), visibility.copy()
    distance = np.zeros(len(labels))
    for _ in range(_MAX_ROUNDS):
        predicted = apply_maps(keypoints, fit_maps(keypoints, labels, visibility, bias=False))
        distance = _pose_distance(predicted, labels, visibility)
        nearer = _pose_distance(predicted, labels[:, partners], visibility[:, partners]) < distance
        if nearer.sum() < _MIN_SWAPS:
            break
        labels[nearer], visibility[nearer] = labels[nearer][:, partners], visibility[nearer][:, partners]
    spread = distance.std(ddof=1) if len(distance) > 1 else 0.0
    kept = distance <= distance.mean() + _OUTLIER_DEVIATIONS * spread
    maps = fit_maps(keypoints[kept], labels[kept], visibility[kept], bias=False)
    held, held_labels, held_visibility = _drop_unlabelled(heldout)
    constant = np.broadcast_to(mean_pose(labels, visibility), held_labels.shape)
    errors = []
    for predicted in (apply_maps(held, maps), constant):
        as_is = _pose_distance(predicted, held_labels, held_visibility)
        swapped = _pose_distance(predicted, held_labels[:, partners], held_visibility[:, partners])
        errors.append(float(100 * np.minimum(as_is, swapped).mean()))
    return {"error_percent": errors[0], "mean_pose_percent": errors[1]}


def summed_errors(train: Split, heldout: Split) -> dict[str, float]:
    """Score by Taichi's protocol: a map with bias for each keypoint and axis, coordinates times 255.

    Returns:
        "summed_error" and "mean_pose_summed_error": the mean absolute error over the held-out pictures where a
        keypoint is visible, summed over keypoints and axes, in pixels of a 256-pixel picture.
    """
    constant = np.broadcast_to(mean_pose(train[1], train[2]), heldout[1].shape)
    errors = []
    for predicted in (apply_maps(heldout[0], fit_maps(*train)), constant):
        seen = heldout[2] > 0
        absolute = np.where(seen[..., None], np.abs(predicted - heldout[1]), 0)
        errors.append(float(_SCALE * (absolute.sum(0) / seen.sum(0)[:, None]).sum()))
    return {"summed_error": errors[0], "mean_pose_summed_error": errors[1]}


def sides(keypoint_names: Sequence[str]) -> tuple[int, ...] | None:
    """Return the index of each keypoint's partner on the other side, by its name.

    A side is a word ("left", "R", in "left_eye", "elbow-R", "wingL"), the start or end of a word ("leftear"), or its
    first or last letter ("lbrow_0", "pawl"), the clearest of these first; only where the mirrored name exists. A
    keypoint without a partner has its own index. Returns None if no keypoint has one.
    """
    words = [tuple(re.findall(r"[A-Z]*[a-z]+|[A-Z]+|[0-9]+|[^\W_]", name)) for name in keypoint_names]
    index_of = {_joined(key): index for index, key in enumerate(words)}
    partners = []
    for index, key in enumerate(words):
        found = (index_of.get(_joined([re.sub(side, _other, word) for word in key])) for side in _SIDES)
        partners.append(next((other for other in found if other not in (None, index)), index))
    paired = any(partner != index for index, partner in enumerate(partners))
    unique = all(partners[partner] == index for index, partner in enumerate(partners))
    return tuple(partners) if paired and unique else None


def _joined(words: Iterable[str]) -> str:
    return " ".join(words).lower()


def _other(side: re.Match[str]) -> str:
    return _OTHER[side[0].lower()]


def _pose_distance(predicted: Array, labels: Array, visibility: Array) -> Array:
    seen = visibility > 0
    distance: Array = np.where(seen, np.linalg.norm(predicted - labels, axis=-1), 0).sum(1) / seen.sum(1)
    return distance


def _drop_unlabelled(split: Split) -> Split:
    keypoints, labels, visibility = split
    any_seen = (visibility > 0).any(1)
    return keypoints[any_seen], labels[any_seen], visibility[any_seen]


def _select(split: Split, joints: NDArray[np.int64]) -> Split:
    return split[0], split[1][:, joints], split[2][:, joints]


def _check_swap(swap: Sequence[int], count: int) -> NDArray[np.int64]:
    partners = np.asarray(swap, dtype=np.int64)
    if sorted(partners.tolist()) != list(range(count)) or (partners[partners] != np.arange(count)).any():
        raise ValueError(f"swap is {partners.tolist()}; expected each of {count} keypoints' partner or own index")
    return partners
