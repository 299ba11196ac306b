"""From learned keypoints to landmarks that a user labelled in a handful of pictures. Numpy only.

The map is the field's, linear with bias from all learned keypoints of a picture to each landmark (:mod:`model.maps`),
but with fewer pictures than it has inputs (2K + 1) least squares would fit anything. So it is ridge regression: the
weights are drawn towards none, that is the landmark towards its mean place, by a strength that cross-validation
chooses. A landmark that moves with some keypoints moves in x as they do in x and in y as they do in y, so weights
shared by both axes are drawn a tenth as hard as all others; on the rendered dog that lowers the error by a tenth of
itself with five pictures and little from fifty on.

All coordinates are (x, y) in [0, 1] of the image side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.maps import Array, apply_maps, check_split, mean_pose

STRENGTHS: Array = np.logspace(-4, 2, 19)
"""What is tried, in units of the inputs' mean square times their number."""
FEWEST_PICTURES = 5
FEWEST_VISIBLE = 3
"""Pictures in which each landmark must be visible."""
_SHARED = 10.0  # how much harder weights of one axis are drawn than those shared by both
_FOLDS = 10
_ALL_ALONE = 20  # up to so many pictures each is a fold of its own
_LEAST_LEFT = 1e-9  # of a picture's weight in its own prediction, where a division would be by nothing


@dataclass(frozen=True)
class LandmarkFit:
    """Maps to J landmarks, and how far they are off on pictures that they were not fitted on.

    Attributes:
        maps: (J, 2K + 1, 2); :func:`model.maps.apply_maps` takes them.
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
    """The maps at the strength of least error on pictures left out one by one, and that strength."""
    solvers: dict[bytes, _Ridge] = {}  # landmarks that are visible in the same pictures share one
    of_landmark = []
    for joint in range(labels.shape[1]):
        rows = seen[:, joint]
        if rows.tobytes() not in solvers:
            solvers[rows.tobytes()] = _Ridge(keypoints[rows])
        of_landmark.append((solvers[rows.tobytes()], labels[rows, joint]))
    errors = [
        np.mean([np.nanmean(solver.left_out(places, strength)) for solver, places in of_landmark])
        for strength in STRENGTHS
    ]
    strength = float(STRENGTHS[int(np.argmin(errors))])
    return np.stack([solver.map(places, strength) for solver, places in of_landmark]), strength


class _Ridge:
    """Ridge regression from poses (N, K, 2) to places (N, 2), with bias, decomposed once for all strengths.

    The unknowns are K weights shared by both axes and, scaled so that they are drawn harder, 4K of single axes.
    """

    def __init__(self, keypoints: Array) -> None:
        count, self._k = keypoints.shape[:2]
        self._mean = keypoints.mean(0)
        moved = keypoints - self._mean
        self._scale = 1 / np.sqrt(_SHARED)
        inputs = np.zeros((count, 2, 5, self._k))  # picture, axis of the landmark, kind of weight, keypoint
        for axis in range(2):
            inputs[:, axis, 0] = moved[..., axis]
            for other in range(2):
                inputs[:, axis, 1 + 2 * axis + other] = self._scale * moved[..., other]
        self._u, self._s, self._vt = np.linalg.svd(inputs.reshape(2 * count, -1), full_matrices=False)
        self._unit = 2 * count * float(np.mean(moved**2)) or 1.0

    def left_out(self, places: Array, strength: float) -> Array:
        """How far the prediction of each picture is off (N,), the others alone being fitted; exact."""
        count = len(places)
        shrunk = self._s**2 / (self._s**2 + strength * self._unit)
        centred = (places - places.mean(0)).reshape(-1)
        residual = (centred - (self._u * shrunk) @ (self._u.T @ centred)).reshape(count, 2)
        rows = self._u.reshape(count, 2, -1)
        own = np.einsum("nar,r,nbr->nab", rows, shrunk, rows) + np.eye(2) / count
        left = np.eye(2) * (1 + _LEAST_LEFT) - own
        off: Array = np.linalg.norm(np.linalg.solve(left, residual[..., None])[..., 0], axis=-1)
        return off

    def map(self, places: Array, strength: float) -> Array:
        """The map (2K + 1, 2)."""
        mean = places.mean(0)
        centred = (places - mean).reshape(-1)
        weights = self._vt.T @ (self._s / (self._s**2 + strength * self._unit) * (self._u.T @ centred))
        shared, single = weights[: self._k], self._scale * weights[self._k :].reshape(2, 2, self._k)
        linear = np.zeros((self._k, 2, 2))  # keypoint, its axis, axis of the landmark
        for axis in range(2):
            linear[:, axis, axis] = shared
            for other in range(2):
                linear[:, other, axis] += single[axis, other]
        flat = linear.reshape(2 * self._k, 2)
        return np.concatenate((flat, (mean - self._mean.reshape(-1) @ flat)[None]))


def _folds(count: int) -> NDArray[np.int64]:
    """Which fold each picture is in (N,); the same every time."""
    order = np.random.default_rng(0).permutation(count)
    return order if count <= _ALL_ALONE else order % _FOLDS
