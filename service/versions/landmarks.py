"""Landmarks: labelled pictures and the poses found in them → maps, and poses → landmarks through these.

Maps work in the model's square, so pictures of any size and boxes fit. Everything here computes; for threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from model.scoring.label_files import parse_labels
from model.scoring.labels import Labels, LabelsError, from_square
from model.scoring.landmarks import FEWEST_PICTURES, FEWEST_VISIBLE, LandmarkFit, fit_landmarks
from model.scoring.linear_maps import apply_maps
from service.contract.errors import BadLabels, BadLandmarks
from service.contract.media.fitting import Frame
from service.contract.versions.landmarks import MOST_LANDMARKS, CrossValidation, LandmarkError, LandmarkSet

Array = NDArray[np.float64]

MAX_FIT_LABELS_BYTES = 8 * 2**20
"""Of labels that are read while their sender waits: 64 MiB took half a minute and gigabytes of memory."""

_FARTHEST = 1.0  # sides of the picture's square that a label may lie outside of it
_DIGITS = 9
_LONGEST_NAME = 200


@dataclass(frozen=True)
class LandmarkMaps:
    """A set of landmarks, ready for poses.

    Attributes:
        names: J names.
        maps: (J, 2K + 1, 2).
    """

    names: tuple[str, ...]
    maps: Array

    @classmethod
    def load(cls, stored: LandmarkSet) -> LandmarkMaps:
        """From its document."""
        return cls(tuple(stored.landmarks), np.array(stored.maps, dtype=np.float64))

    def of(self, keypoints: NDArray[np.float32]) -> Array:
        """The landmarks (J, 2) of a pose (K, 2), both in [-1, 1] of the square."""
        landmarks: Array = apply_maps((keypoints[None].astype(np.float64) + 1) / 2, self.maps)[0] * 2 - 1
        return landmarks


@dataclass(frozen=True)
class Sight:
    """A picture as the gateway saw it: its size in pixels, and where the model's square lies on it."""

    width: int
    height: int
    frame: Frame


def read_labelled(data: bytes, pictures: Sequence[str]) -> tuple[Labels, list[int], int]:
    """The labels of some pictures, and which of the pictures have one.

    Args:
        data: CSV, COCO keypoints JSON, or JSON as our samples'.
        pictures: their file names.

    Returns:
        Labels in the order of the pictures that have some, the indices of these, and how many labelled pictures are
        none of them.

    Raises:
        BadLabels: they can't be read, or belong to none of the pictures.
        BadLandmarks: too many landmarks, or too few pictures to fit.
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
    for name in found.keypoint_names:
        if not name or len(name) > _LONGEST_NAME or not name.isprintable():
            raise BadLandmarks(
                f"a landmark is called {name[:80]!r}; expected 1 to {_LONGEST_NAME} printable characters"
            )
    for name, count in zip(found.keypoint_names, found.visibility.astype(bool).sum(0), strict=True):
        if count < FEWEST_VISIBLE:
            raise BadLandmarks(
                f"the landmark '{name[:80]}' is visible in {count} of {len(labelled)} labelled pictures and at least "
                f"{FEWEST_VISIBLE} are needed; label it in more of them, or leave it out of the labels"
            )
    return found, labelled.tolist(), len(labels) - len(labelled)


def fit_set(name: str, labels: Labels, sights: Sequence[Sight], keypoints: Array) -> LandmarkSet:
    """Fit a set of landmarks.

    Args:
        labels: of N pictures, as :func:`read_labelled` gave them.
        sights: these N pictures.
        keypoints: (N, K, 2) the poses found in them, in [-1, 1] of their squares.

    Raises:
        BadLabels: a label lies far outside of its picture.
    """
    places = _in_square(labels, sights)
    fit = fit_landmarks((keypoints + 1) / 2, places, labels.visibility.astype(np.float64))
    return LandmarkSet(
        name=name,
        landmarks=list(labels.keypoint_names),
        num_keypoints=keypoints.shape[1],
        images=len(sights),
        strength=fit.strength,
        maps=fit.maps.round(_DIGITS).tolist(),
        cross_validation=_validated(fit, labels, np.array([sight.frame.size for sight in sights])),
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    )


def _in_square(labels: Labels, sights: Sequence[Sight]) -> Array:
    """The labels (N, J, 2) in [0, 1] of the square that the model saw, 0 where not visible."""
    places = np.zeros_like(labels.keypoints)
    for row, sight in enumerate(sights):
        pixels = labels.keypoints[row]
        _check_size(labels, row, sight)
        if labels.in_square:
            pixels = from_square(pixels, sight.width, sight.height)
        seen = labels.visibility[row] > 0
        reach = _FARTHEST * max(sight.width, sight.height)
        far = seen & ((pixels < -reach) | (pixels > [sight.width + reach, sight.height + reach])).any(-1)
        if far.any():
            joint = int(far.argmax())
            x, y = pixels[joint]
            raise BadLabels(
                f"'{labels.keypoint_names[joint][:80]}' of '{labels.names[row][:80]}' is at ({x:g}, {y:g}), far "
                f"outside of the picture, which has {sight.width} x {sight.height} pixels"
            )
        places[row][seen] = (sight.frame.from_picture(pixels[seen]) + 1) / 2
    return places


def _check_size(labels: Labels, row: int, sight: Sight) -> None:
    """A map would take up another scale, and put it on every new picture: the labels must be of these very pixels."""
    if labels.sizes is None or labels.in_square:
        return
    width, height = labels.sizes[row].tolist()
    # a picture that its EXIF orientation turns has either
    if sorted((width, height)) != sorted((sight.width, sight.height)):
        raise BadLabels(
            f"by the labels '{labels.names[row][:80]}' has {width} x {height} pixels, and the picture that came has "
            f"{sight.width} x {sight.height}; send the pictures that were labelled, or scale the labels"
        )


def _validated(fit: LandmarkFit, labels: Labels, sizes: Array) -> CrossValidation:
    """The errors, in percent of the square and in pixels; ``sizes`` (N,) are the squares' sides in pixels."""
    pixels = fit.distances * sizes[:, None]
    told = np.isfinite(fit.distances)

    def mean(values: Array, joint: int) -> float | None:
        return round(float(values[told[:, joint], joint].mean()), 4) if told[:, joint].any() else None

    return CrossValidation(
        folds=fit.folds,
        error_percent=round(100 * float(fit.distances[told].mean()), 4),
        error_px=round(float(pixels[told].mean()), 4),
        mean_place_percent=round(100 * float(fit.constant[told].mean()), 4),
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
