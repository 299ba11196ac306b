"""Match labels to the pictures of an upload, and split them into training and held-out pictures. Numpy only."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .label_fitting import CameSize, fit_labels
from .labels import Labels, LabelsError, from_square, hashed_split

_MOST_OTHERS = 4  # names that are kept: more than a message lists


class SquareOnPicture(Protocol):
    """The place of a model's square on its picture."""

    def from_picture(self, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert points (…, 2) from pixels of the picture to [-1, 1] of the square."""


@dataclass(frozen=True)
class LabelledPictures:
    """The n labelled ones of a job's pictures, J keypoints each.

    Attributes:
        pictures: int64 (n,), their indices among the prepared pictures, ascending.
        keypoints: (n, J, 2) in [0, 1] of the model's square.
        visibility: (n, J), non-zero where a label counts.
        heldout: bool (n,), whether a picture is held out of training.
        split_from: "labels", or "names" if the split is by a hash of the names.
        without_picture: number of labels that match no picture of the job.
        others: names of the first of these; empty once loaded.
    """

    pictures: NDArray[np.int64]
    keypoints: NDArray[np.float64]
    visibility: NDArray[np.float64]
    heldout: NDArray[np.bool_]
    keypoint_names: tuple[str, ...]
    split_from: str
    without_picture: int
    others: tuple[str, ...] = ()

    def save(self, file: IO[bytes]) -> None:
        """Write an .npz, without the names of ``others``: earlier releases continue jobs with it."""
        facts: dict[str, Any] = {name: value for name, value in vars(self).items() if name != "others"}
        arrays = {name: facts.pop(name) for name in ("pictures", "keypoints", "visibility", "heldout")}
        np.savez(file, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)

    @classmethod
    def load(cls, path: Path) -> LabelledPictures:
        """Read a file that `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            values = {name: arrays[name] for name in arrays.files}
        facts = json.loads(values.pop("facts").tobytes())
        return cls(**values, **facts | {"keypoint_names": tuple(facts["keypoint_names"])})


def match_labels(
    labels: Labels,
    names: Sequence[str],
    sizes: Sequence[Sequence[int]],
    clips: NDArray[np.int64] | None = None,
    hint: str = "",
    frames: Sequence[SquareOnPicture] | None = None,
    orientations: Sequence[int] | None = None,
    with_several: Collection[str] = (),
) -> LabelledPictures:
    """Return the labelled pictures among N pictures.

    If the labels have no split, a fifth of the labelled pictures is held out by a hash of their names; of frames, a
    fifth of the labelled ``clips``. Sizes are width and height in pixels, EXIF orientation applied. The ``hint`` is for
    names that are not ASCII, as these may have been spoilt. ``frames`` say where the squares lie on the pictures; whole
    pictures unless given. With ``orientations``, EXIF's of the pictures, labels of other sizes are fitted
    (:func:`.label_fitting.fit_labels`). Pictures ``with_several`` boxes may be there several times, and must have no
    labels: which box is the labelled animal's is not known.

    Raises LabelsError if no picture has a label, a name matches twice, a labelled picture has several boxes, or a part
    of the split would be empty.
    """
    try:
        rows = match_crops(labels, names, with_several)
    except LabelsError as error:
        if hint and not all(map(str.isascii, names)):
            raise LabelsError(f"{error}; {hint}") from error
        raise
    pictures, used = np.flatnonzero(rows >= 0), frozenset(rows.tolist())
    known_sizes = {labels.names[rows[index]]: (sizes[index][0], sizes[index][1]) for index in pictures.tolist()}
    matched = labels.rows(rows[pictures])
    if orientations is not None:
        came = zip(matched.names, pictures.tolist(), strict=True)
        matched = fit_labels(matched, {name: CameSize(*known_sizes[name], orientations[index]) for name, index in came})
    matched = matched.to_square(known_sizes)
    keypoints = matched.keypoints
    if frames is not None:
        width, height = np.array([sizes[index] for index in pictures.tolist()]).T[..., None]
        own = zip(pictures.tolist(), from_square(keypoints, width, height), strict=True)
        keypoints = np.stack([(frames[index].from_picture(points) + 1) / 2 for index, points in own])
        keypoints[matched.visibility == 0] = 0
    heldout = hold_out(
        matched, [names[index] for index in pictures.tolist()], None if clips is None else clips[pictures]
    )
    return LabelledPictures(
        pictures,
        keypoints,
        matched.visibility.astype(np.float64),
        heldout,
        matched.keypoint_names,
        "labels" if matched.split else "names",
        len(labels) - len(pictures),
        tuple(islice((name for row, name in enumerate(labels.names) if row not in used), _MOST_OTHERS)),
    )


def match_crops(labels: Labels, names: Sequence[str], with_several: Collection[str]) -> NDArray[np.int64]:
    """Match as :meth:`.Labels.match`; names of pictures ``with_several`` boxes may be there several times.

    Raises LabelsError if one of these has labels, too, or no keypoint is visible.
    """
    labels.check_visible()
    if not with_several:
        return labels.match(names)
    several = frozenset(with_several)
    others = [name for name in names if name not in several]
    unique = [*others, *several.intersection(names)]
    row_of = dict(zip(unique, labels.match(unique).tolist(), strict=True))
    labelled = sorted(name for name in several if row_of.get(name, -1) >= 0)
    if labelled:
        raise LabelsError(
            f"'{labelled[0][:80]}' has several boxes, and one labelled animal; leave the box of the labelled one, or "
            "leave out the picture's labels"
        )
    return np.array([row_of[name] for name in names], dtype=np.int64)


def hold_out(labels: Labels, names: Sequence[str], clips: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
    """Return which of the n labelled pictures are held out (n,). Raises LabelsError if all or none are."""
    split = labels.split or hashed_split(names, clips=None if clips is None else clips.tolist())
    heldout = np.array([part == "test" for part in split], dtype=np.bool_)
    for is_empty, part in ((heldout.all(), "train"), (not heldout.any(), "test")):
        if is_empty:
            why = "" if labels.split or clips is None else ", because all are of one clip; add a split to the labels"
            raise LabelsError(f"none of {len(names)} labelled pictures is in the split '{part}'{why}")
    return heldout


def training_rows(
    count: int, labelled: LabelledPictures | None, clips: NDArray[np.int64] | None = None
) -> NDArray[np.bool_]:
    """Return which of `count` pictures to train on (count,): neither held-out ones nor the only frame of a clip."""
    rows = np.ones(count, dtype=np.bool_)
    if labelled is not None:
        rows[labelled.pictures[labelled.heldout]] = False
    if clips is not None:
        left = np.bincount(clips[rows], minlength=int(clips.max()) + 1)
        rows &= left[clips] > 1
    return rows
