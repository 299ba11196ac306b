"""Fit maps from learned keypoints to landmarks that a user labelled in a few pictures. Numpy only.

As in :mod:`model.scoring.linear_maps`, the map is linear with bias from all keypoints of a picture to each landmark.
With fewer pictures than inputs (2K + 1) least squares would overfit, so this is ridge regression: the weights are
shrunk towards a prior guess, and cross-validation chooses guess and strength. The priors:

- A landmark moves in x as its keypoints do in x, and in y as they do in y. Weights shared by both axes are therefore
  shrunk a tenth as hard as all others.
- It moves with nearby keypoints: a weight is shrunk harder the farther the keypoint's mean place is from the
  landmark's, because in a few pictures distant parts move alike by chance.
- The guess is that it stays at its mean place, moves with a weighted mean of the keypoints around it, or half of that
  (FOLLOWS).

The last two lower the error by 8 % (photographed birds) and 18 % (rendered dogs) with five pictures, 3 and 6 % with
twenty, and 1 and 2 % with two hundred, as `python -m benchmarks.accuracy.landmarks` measures.

All coordinates are (x, y) in [0, 1] of the image side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .linear_maps import Array, apply_maps, check_split, mean_pose

# strengths to try, in units of the inputs' mean square times their number
STRENGTHS: Array = np.logspace(-4, 2, 19)
FEWEST_PICTURES = 5
FEWEST_VISIBLE = 3  # pictures in which each landmark must be visible
FOLLOWS = (0.0, 0.5, 1.0)  # guesses of how far a landmark moves with the keypoints around it
_SINGLE = 10**-0.5  # scale of single-axis weights; weights shared by both axes have 1
_REACH = 0.2  # distance, of the image side, at which a keypoint's nearness is one half
_NEARNESS_POWER = 4  # for the weighted mean of the keypoints around a landmark
_FOLDS = 10
_MAX_SINGLE_FOLDS = 20  # up to this many pictures, each is a fold of its own
_EPSILON = 1e-9  # avoids a division by zero if a picture alone determines its own prediction


@dataclass(frozen=True)
class LandmarkFit:
    """Maps to J landmarks, and their cross-validated errors.

    Attributes:
        maps: (J, 2K + 1, 2), for :func:`model.scoring.linear_maps.apply_maps`.
        strength: ridge penalty, the same for all landmarks.
        distances: (N, J), the error of each picture by maps fitted, and a strength chosen, without its fold; NaN if
            the landmark is not visible there, or in too few of the other pictures.
        constant: (N, J), the same for guessing the mean place.
        folds: number of folds.
    """

    maps: Array
    strength: float
    distances: Array
    constant: Array
    folds: int


def fit_landmarks(keypoints: Array, labels: Array, visibility: Array) -> LandmarkFit:
    """Fit the maps from learned keypoints (N, K, 2) to landmarks (N, J, 2), and cross-validate them.

    Raises ValueError for fewer than FEWEST_PICTURES pictures, or a landmark visible in fewer than FEWEST_VISIBLE.
    """
    check_split(keypoints, labels, visibility)
    seen = visibility > 0
    if len(keypoints) < FEWEST_PICTURES:
        raise ValueError(f"{len(keypoints)} pictures; at least {FEWEST_PICTURES} are needed, usually 10 to 50")
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
        known, known_seen = labels[rows][:, scored], seen[rows][:, scored]
        maps, _ = _fit(keypoints[rows], known, known_seen)
        truth, there = labels[held][:, scored], seen[held][:, scored]
        for target, guess in (
            (distances, apply_maps(keypoints[held], maps)),
            (constant, mean_pose(known, known_seen.astype(np.float64))),
        ):
            target[np.ix_(held, scored)] = np.where(there, np.linalg.norm(guess - truth, axis=-1), np.nan)
    maps, strength = _fit(keypoints, labels, seen)
    return LandmarkFit(maps, strength, distances, constant, int(folds.max()) + 1)


def _fit(keypoints: Array, labels: Array, seen: NDArray[np.bool_]) -> tuple[Array, float]:
    """Return the maps, and the strength, of the guess and strength with the least leave-one-out error."""
    # landmarks that are visible in the same pictures share poses
    poses = {rows.tobytes(): _Poses(keypoints[rows]) for rows in np.unique(seen.T, axis=0)}
    ridges = [_Ridge(poses[rows.tobytes()], labels[rows, joint]) for joint, rows in enumerate(seen.T)]
    errors = np.mean([np.nanmean(ridge.leave_one_out(STRENGTHS), axis=-1) for ridge in ridges], axis=0)  # (F, S)
    follow, best = divmod(int(np.argmin(errors)), len(STRENGTHS))
    strength = float(STRENGTHS[best])
    return np.stack([ridge.fit_map(follow, strength) for ridge in ridges]), strength


class _Poses:
    """Poses (N, K, 2) as inputs of a ridge regression with bias to places (N, 2).

    The unknowns are K weights shared by both axes, and 4K of single axes, scaled so that they are shrunk harder.
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
    """The regression to the places (N, 2) of one landmark, decomposed once for all strengths and guesses."""

    def __init__(self, poses: _Poses, places: Array) -> None:
        self._poses, self._place = poses, places.mean(0)
        near = _nearness(poses.mean, self._place)
        scale = np.tile(near / np.sqrt(np.mean(near**2)), 5)
        values, vectors = np.linalg.eigh(scale[:, None] * poses.gram * scale)
        self._values = np.maximum(values, 0)
        self._vectors: Array = scale[:, None] * vectors
        self._rows: Array = poses.inputs @ self._vectors
        self._around = near**_NEARNESS_POWER / (near**_NEARNESS_POWER).sum()
        moved = np.einsum("nka,k->na", poses.moved, self._around)
        self._targets = [(places - self._place - follow * moved).reshape(-1) for follow in FOLLOWS]
        self._projected: list[Array] = [self._rows.T @ target for target in self._targets]

    def leave_one_out(self, strengths: Array) -> Array:
        """Return the error of each picture by a fit to all others (F, S, N).

        Exact, except that the nearness of keypoints uses the mean place over all pictures.
        """
        shrunk = 1 / (self._values[:, None] + strengths * self._poses.unit)  # (5K, S)
        rows = self._rows.reshape(-1, 2, self._rows.shape[1])
        count = len(rows)
        own = [(rows[:, a] * rows[:, b]) @ shrunk for a, b in ((0, 0), (0, 1), (1, 1))]  # leverages, each (N, S)
        xx, yy, xy = 1 + _EPSILON - own[0] - 1 / count, 1 + _EPSILON - own[2] - 1 / count, -own[1]
        errors = []
        for target, projected in zip(self._targets, self._projected, strict=True):
            residual = target[:, None] - self._rows @ (projected[:, None] * shrunk)
            x, y = np.moveaxis(residual.reshape(count, 2, -1), 1, 0)
            errors.append(np.hypot(yy * x - xy * y, xx * y - xy * x) / np.abs(xx * yy - xy * xy))
        return np.stack(errors).transpose(0, 2, 1)

    def fit_map(self, follow: int, strength: float) -> Array:
        """Return the map (2K + 1, 2), shrunk towards the guess FOLLOWS[follow]."""
        k, mean = self._poses.k, self._poses.mean
        weights = self._vectors @ (self._projected[follow] / (self._values + strength * self._poses.unit))
        shared, single = weights[:k] + FOLLOWS[follow] * self._around, _SINGLE * weights[k:].reshape(2, 2, k)
        linear = np.zeros((k, 2, 2))  # keypoint, its axis, axis of the landmark
        for axis in range(2):
            linear[:, axis, axis] = shared
            for other in range(2):
                linear[:, other, axis] += single[axis, other]
        flat = linear.reshape(2 * k, 2)
        return np.concatenate((flat, (self._place - mean.reshape(-1) @ flat)[None]))


def _nearness(keypoints: Array, place: Array) -> Array:
    """Return the nearness (K,) of keypoints (K, 2) to a place: 1 at distance 0, one half at _REACH."""
    near: Array = 1 / (1 + ((keypoints - place) ** 2).sum(-1) / _REACH**2)
    return near


def _folds(count: int) -> NDArray[np.int64]:
    """Return the fold of each picture (N,), the same for each call."""
    order = np.random.default_rng(0).permutation(count)
    return order if count <= _MAX_SINGLE_FOLDS else order % _FOLDS
