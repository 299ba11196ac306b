"""From learned keypoints to landmarks that a user labelled in a handful of pictures. Numpy only.

The map is the field's, linear with bias from all learned keypoints of a picture to each landmark
(:mod:`model.scoring.linear_maps`),
but with fewer pictures than it has inputs (2K + 1) least squares would fit anything. So it is ridge regression: the
weights are drawn towards a guess by a strength, and cross-validation chooses both. What is known beforehand:

- A landmark that moves with some keypoints moves in x as they do in x and in y as they do in y, so weights shared by
  both axes are drawn a tenth as hard as all others.
- It moves with what is near it. In a handful of pictures much moves alike by chance, so a keypoint's weight is drawn
  the harder the further its mean place is from the landmark's.
- Without any evidence it is best to guess that it stays at its mean place, or moves with the keypoints around it (a
  weighted mean of them), or half of that: FOLLOWS.

`python -m benchmarks.accuracy.landmarks` measures it. The last two lower the error by 8 % of itself on photographed
birds and by
18 % on rendered dogs with five pictures, by 3 and 6 % with twenty, and by 1 and 2 % with two hundred.

All coordinates are (x, y) in [0, 1] of the image side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .linear_maps import Array, apply_maps, check_split, mean_pose

STRENGTHS: Array = np.logspace(-4, 2, 19)
"""What is tried, in units of the inputs' mean square times their number."""
FEWEST_PICTURES = 5
FEWEST_VISIBLE = 3
"""Pictures in which each landmark must be visible."""
FOLLOWS = (0.0, 0.5, 1.0)
"""How far a landmark is guessed to move with the keypoints around it."""
_SINGLE = 10**-0.5  # how freely weights of one axis move; those shared by both axes move by 1
_REACH = 0.2  # of the image side: a keypoint so far from a landmark may move it half as much as one at its place
_CLOSE = 4  # the power of nearness by which keypoints around a landmark are weighted
_FOLDS = 10
_ALL_ALONE = 20  # up to so many pictures each is a fold of its own
_LEAST_LEFT = 1e-9  # of a picture's weight in its own prediction, where a division would be by nothing


@dataclass(frozen=True)
class LandmarkFit:
    """Maps to J landmarks, and how far they are off on pictures that they were not fitted on.

    Attributes:
        maps: (J, 2K + 1, 2); :func:`model.scoring.linear_maps.apply_maps` takes them.
        strength: of the ridge, one for all landmarks.
        distances: (N, J) of each picture's prediction by maps that were fitted, and whose strength was chosen,
            without its fold; NaN where the landmark is not visible, or in too few of the other pictures.
        constant: the same of guessing the mean place.
        folds: of the cross-validation.
    """

    maps: Array
    strength: float
    distances: Array
    constant: Array
    folds: int


def fit_landmarks(keypoints: Array, labels: Array, visibility: Array) -> LandmarkFit:
    """Fit the maps, and cross-validate them.

    Args:
        keypoints: (N, K, 2) learned keypoints.
        labels: (N, J, 2) where the landmarks are.
        visibility: (N, J), non-zero where a label counts.

    Raises:
        ValueError: fewer than FEWEST_PICTURES pictures, or a landmark that is visible in fewer than FEWEST_VISIBLE.
    """
    check_split(keypoints, labels, visibility)
    seen = visibility > 0
    if len(keypoints) < FEWEST_PICTURES:
        raise ValueError(f"{len(keypoints)} pictures; at least {FEWEST_PICTURES} are needed, 10 to 50 are usual")
    rare = np.flatnonzero(seen.sum(0) < FEWEST_VISIBLE)
    if len(rare):
        raise ValueError(
            f"landmark {rare[0]} is visible in {seen[:, rare[0]].sum()} pictures; each needs {FEWEST_VISIBLE}"
        )
    folds = _folds(len(keypoints))
    distances, constant = (np.full(seen.shape, np.nan) for _ in range(2))
    for fold in range(folds.max() + 1):
        rows, held = folds != fold, folds == fold
        scored = np.flatnonzero(seen[rows].sum(0) > 1)
        if not len(scored):
            continue
        part = keypoints[rows], labels[rows][:, scored], seen[rows][:, scored]
        maps, _ = _fit(*part)
        truth, there = labels[held][:, scored], seen[held][:, scored]
        guesses = (
            (distances, apply_maps(keypoints[held], maps)),
            (constant, np.broadcast_to(mean_pose(part[1], part[2].astype(np.float64)), truth.shape)),
        )
        for target, guess in guesses:
            off = np.where(there, np.linalg.norm(guess - truth, axis=-1), np.nan)
            target[np.ix_(held, scored)] = off
    maps, strength = _fit(keypoints, labels, seen)
    return LandmarkFit(maps, strength, distances, constant, int(folds.max()) + 1)


def _fit(keypoints: Array, labels: Array, seen: NDArray[np.bool_]) -> tuple[Array, float]:
    """The maps at what has the least error on pictures left out one by one: where drawn to, and how hard."""
    poses: dict[bytes, _Poses] = {}  # landmarks that are visible in the same pictures share them
    ridges = []
    for joint in range(labels.shape[1]):
        rows = seen[:, joint]
        if rows.tobytes() not in poses:
            poses[rows.tobytes()] = _Poses(keypoints[rows])
        ridges.append(_Ridge(poses[rows.tobytes()], labels[rows, joint]))
    errors = np.mean([np.nanmean(ridge.left_out(STRENGTHS), axis=-1) for ridge in ridges], axis=0)  # (F, S)
    follow, best = divmod(int(np.argmin(errors)), len(STRENGTHS))
    strength = float(STRENGTHS[best])
    return np.stack([ridge.map(follow, strength) for ridge in ridges]), strength


class _Poses:
    """Poses (N, K, 2) as the inputs of a ridge regression from them to places (N, 2), with bias.

    The unknowns are K weights shared by both axes and, scaled so that they are drawn harder, 4K of single axes.
    """

    def __init__(self, keypoints: Array) -> None:
        count, self.k = keypoints.shape[:2]
        self.mean = keypoints.mean(0)
        self.moved = moved = keypoints - self.mean
        inputs = np.zeros((count, 2, 5, self.k))  # picture, axis of the landmark, kind of weight, keypoint
        for axis in range(2):
            inputs[:, axis, 0] = moved[..., axis]
            for other in range(2):
                inputs[:, axis, 1 + 2 * axis + other] = _SINGLE * moved[..., other]
        self.inputs: Array = inputs.reshape(2 * count, -1)
        self.gram: Array = self.inputs.T @ self.inputs
        self.unit = 2 * count * float(np.mean(moved**2)) or 1.0


class _Ridge:
    """The regression to the places (N, 2) of one landmark, decomposed once for all that is tried."""

    def __init__(self, poses: _Poses, places: Array) -> None:
        self._poses, self._place = poses, places.mean(0)
        near = _nearness(poses.mean, self._place)
        scale = np.tile(near / np.sqrt(np.mean(near**2)), 5)
        values, vectors = np.linalg.eigh(scale[:, None] * poses.gram * scale)
        self._values = np.maximum(values, 0)
        self._vectors: Array = scale[:, None] * vectors
        self._rows: Array = poses.inputs @ self._vectors
        self._around = near**_CLOSE / (near**_CLOSE).sum()
        with_them = np.einsum("nka,k->na", poses.moved, self._around)
        self._targets = [(places - self._place - follow * with_them).reshape(-1) for follow in FOLLOWS]
        self._drawn: list[Array] = [self._rows.T @ target for target in self._targets]

    def left_out(self, strengths: Array) -> Array:
        """How far the prediction of each picture is off (F, S, N), the others alone being fitted.

        That is exact but for the mean place, which is that of all where it says how near a keypoint is.
        """
        shrunk = 1 / (self._values[:, None] + strengths * self._poses.unit)  # (5K, S)
        rows = self._rows.reshape(-1, 2, self._rows.shape[1])
        count = len(rows)
        own = [(rows[:, a] * rows[:, b]) @ shrunk for a, b in ((0, 0), (0, 1), (1, 1))]  # of 2 x 2 weights, (N, S)
        xx, yy, xy = 1 + _LEAST_LEFT - own[0] - 1 / count, 1 + _LEAST_LEFT - own[2] - 1 / count, -own[1]
        off = []
        for target, drawn in zip(self._targets, self._drawn, strict=True):
            residual = target[:, None] - self._rows @ (drawn[:, None] * shrunk)
            x, y = np.moveaxis(residual.reshape(count, 2, -1), 1, 0)
            off.append(np.hypot(yy * x - xy * y, xx * y - xy * x) / np.abs(xx * yy - xy * xy))
        return np.stack(off).transpose(0, 2, 1)

    def map(self, follow: int, strength: float) -> Array:
        """The map (2K + 1, 2), drawn towards FOLLOWS[follow]."""
        k, mean = self._poses.k, self._poses.mean
        weights = self._vectors @ (self._drawn[follow] / (self._values + strength * self._poses.unit))
        shared, single = weights[:k] + FOLLOWS[follow] * self._around, _SINGLE * weights[k:].reshape(2, 2, k)
        linear = np.zeros((k, 2, 2))  # keypoint, its axis, axis of the landmark
        for axis in range(2):
            linear[:, axis, axis] = shared
            for other in range(2):
                linear[:, other, axis] += single[axis, other]
        flat = linear.reshape(2 * k, 2)
        return np.concatenate((flat, (self._place - mean.reshape(-1) @ flat)[None]))


def _nearness(keypoints: Array, place: Array) -> Array:
    """How near each keypoint (K, 2) is to a place (K,): 1 there, a half at _REACH, and less further away."""
    near: Array = 1 / (1 + ((keypoints - place) ** 2).sum(-1) / _REACH**2)
    return near


def _folds(count: int) -> NDArray[np.int64]:
    """Which fold each picture is in (N,); the same every time."""
    order = np.random.default_rng(0).permutation(count)
    return order if count <= _ALL_ALONE else order % _FOLDS
