"""Fit linear maps from keypoints to the landmarks that a user labelled, and apply them to poses. CPU-bound.

The maps work in the model's square, so pictures of any size and boxes can be mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.scoring.label_files import parse_labels
from model.scoring.label_fitting import CameSize, fit_labels
from model.scoring.labels import Labels, LabelsError, from_square
from model.scoring.landmarks import FEWEST_PICTURES, FEWEST_VISIBLE, LandmarkFit, fit_landmarks
from model.scoring.linear_maps import apply_maps
from service.contract.errors import BadLabels, BadLandmarks
from service.contract.jobs.progress import timestamp
from service.contract.media.fitting import Frame
from service.contract.versions.landmarks import MOST_LANDMARKS, CrossValidation, LandmarkError, LandmarkSet

Array = NDArray[np.float64]

MAX_FIT_LABELS_BYTES = 8 * 2**20
"""Limit of labels that are read during a request: 64 MiB took half a minute and gigabytes of memory."""

_DIGITS = 9
_MAX_NAME_LENGTH = 200


@dataclass(frozen=True)
class LandmarkMaps:
    """A set of J landmarks that can be applied to poses of K keypoints; `maps` is (J, 2K + 1, 2)."""

    names: tuple[str, ...]
    maps: Array

    def score(self, scores: NDArray[np.float32]) -> Array:
        """Return the scores (J,) of the landmarks: the mean of the keypoints' (K,), by how much they move each."""
        count = len(scores)
        weights = np.sqrt((self.maps[:, : 2 * count].reshape(len(self.maps), count, -1) ** 2).sum(-1))
        weights += 1e-9  # a landmark that stays in its place follows no keypoint
        mean: Array = (weights * scores).sum(-1) / weights.sum(-1)
        return mean.clip(0, 1)

    def apply(self, keypoints: NDArray[np.float32]) -> Array:
        """Return the landmarks (J, 2) of a pose (K, 2), both in [-1, 1] of the square."""
        landmarks: Array = apply_maps((keypoints[None].astype(np.float64) + 1) / 2, self.maps)[0] * 2 - 1
        return landmarks


@dataclass(frozen=True)
class FittedPicture:
    """The size of a picture in pixels, the frame of the model's square on it, and its EXIF orientation."""

    width: int
    height: int
    frame: Frame
    orientation: int = 1


def read_labelled(data: bytes, pictures: Sequence[str]) -> tuple[Labels, list[int], int]:
    """Read the labels of a request's pictures.

    Args:
        data: of a file as :mod:`model.scoring.label_files` reads.
        pictures: their file names.

    Returns:
        The labels of the labelled pictures in their order, the indices of these pictures, and the number of labels
        whose picture is not in the request.

    Raises:
        BadLabels: the labels can't be read, or match no picture.
        BadLandmarks: there are too many landmarks, or too few pictures to fit them.
    """
    try:
        labels = parse_labels(data)
        rows = labels.match(pictures)
    except LabelsError as error:
        raise BadLabels(f"the labels can't be used: {error}") from error
    labelled = np.flatnonzero(rows >= 0)
    found = labels.rows(rows[labelled])
    if len(found.keypoint_names) > MOST_LANDMARKS:
        raise BadLandmarks(f"{len(found.keypoint_names)} landmarks are labelled; a set may have {MOST_LANDMARKS}")
    if len(labelled) < FEWEST_PICTURES:
        raise BadLandmarks(
            f"{len(labelled)} of {len(pictures)} pictures have labels; at least {FEWEST_PICTURES} are needed, and "
            "10 to 50 are usual"
        )
    counts = found.visibility.astype(bool).sum(0)
    for name, count in zip(found.keypoint_names, counts, strict=True):
        if not name or len(name) > _MAX_NAME_LENGTH or not name.isprintable():
            raise BadLandmarks(
                f"a landmark is called {name[:80]!r}; expected 1 to {_MAX_NAME_LENGTH} printable characters"
            )
        if count < FEWEST_VISIBLE:
            raise BadLandmarks(
                f"the landmark '{name[:80]}' is visible in {count} of {len(labelled)} labelled pictures and at least "
                f"{FEWEST_VISIBLE} are needed; label it in more of them, or leave it out of the labels"
            )
    return found, labelled.tolist(), len(labels) - len(labelled)


def fit_set(
    name: str, labels: Labels, pictures: Sequence[FittedPicture], keypoints: Array, labels_fit: str = "exact"
) -> LandmarkSet:
    """Fit a set of landmarks.

    Args:
        labels: labels of N pictures, from read_labelled.
        pictures: the N pictures.
        keypoints: (N, K, 2) the estimated poses, in [-1, 1] of the squares.
        labels_fit: scale fits labels that state another size of their pictures; exact refuses them.

    Raises:
        BadLabels: labels lie outside of their pictures, or are of pictures of another size.
    """
    targets = _to_square(labels, pictures, labels_fit)
    fit = fit_landmarks((keypoints + 1) / 2, targets, labels.visibility.astype(np.float64))
    return LandmarkSet(
        name=name,
        landmarks=list(labels.keypoint_names),
        num_keypoints=keypoints.shape[1],
        images=len(pictures),
        strength=fit.strength,
        maps=fit.maps.round(_DIGITS).tolist(),
        cross_validation=_cross_validation(fit, labels, np.array([picture.frame.size for picture in pictures])),
        created_at=timestamp(),
    )


def _to_square(labels: Labels, pictures: Sequence[FittedPicture], labels_fit: str) -> Array:
    """Convert the labels to [0, 1] of the model's squares: (N, J, 2), 0 where not visible. Raises BadLabels."""
    sizes = np.array([(picture.width, picture.height) for picture in pictures], dtype=np.int64)
    try:
        if labels_fit == "scale":
            came = [CameSize(picture.width, picture.height, picture.orientation) for picture in pictures]
            labels = fit_labels(labels, dict(zip(labels.names, came, strict=True)))
        labels.with_sizes(sizes)
    except LabelsError as error:
        raise BadLabels(f"the labels can't be used: {error}") from error
    pixels = labels.keypoints
    if labels.in_square:
        pixels = from_square(pixels, sizes[:, None, 0], sizes[:, None, 1])
    targets = np.stack([picture.frame.from_picture(pose) for picture, pose in zip(pictures, pixels, strict=True)])
    return np.where(labels.visibility[..., None] > 0, (targets + 1) / 2, 0.0)


def _cross_validation(fit: LandmarkFit, labels: Labels, sides_px: Array) -> CrossValidation:
    """Report the errors in percent of the square and in pixels; `sides_px` (N,) are the sides of the squares."""
    pixels = fit.distances * sides_px[:, None]
    predicted = np.isfinite(fit.distances)

    def mean(values: Array, joint: int) -> float | None:
        of_joint = values[predicted[:, joint], joint]
        return round(float(of_joint.mean()), 4) if len(of_joint) else None

    return CrossValidation(
        folds=fit.folds,
        error_percent=round(100 * float(fit.distances[predicted].mean()), 4),
        error_px=round(float(pixels[predicted].mean()), 4),
        mean_place_percent=round(100 * float(fit.constant[predicted].mean()), 4),
        per_landmark=[
            LandmarkError(
                name=name,
                visible=int((labels.visibility[:, joint] > 0).sum()),
                error_percent=mean(100 * fit.distances, joint),
                error_px=mean(pixels, joint),
            )
            for joint, name in enumerate(labels.keypoint_names)
        ],
    )
