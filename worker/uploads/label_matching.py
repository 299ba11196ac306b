"""Match a job's labels to its pictures and split them into training and held-out pictures.

Training never sees a label; it only leaves out the held-out pictures. The labels measure what was learned.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.scoring.label_files import read_labels
from model.scoring.labels import Labels, LabelsError, hashed_split
from model.scoring.protocols import sides
from service.contract.durable_files import atomic_write
from service.contract.errors import BadLabels
from service.contract.jobs.files import JobFiles


@dataclass(frozen=True)
class LabelledPictures:
    """The n labelled ones of a job's pictures, J keypoints each.

    Attributes:
        pictures: int64 (n,), their indices among the prepared pictures, ascending.
        keypoints: (n, J, 2) in [0, 1] of the model's square.
        visibility: (n, J), non-zero where a label counts.
        heldout: bool (n,), whether a picture is held out of training.
        keypoint_names: J names.
        split_from: "labels", or "names" if the split is by a hash of the names.
        without_picture: number of labels that match no picture of the job.
    """

    pictures: NDArray[np.int64]
    keypoints: NDArray[np.float64]
    visibility: NDArray[np.float64]
    heldout: NDArray[np.bool_]
    keypoint_names: tuple[str, ...]
    split_from: str
    without_picture: int

    @property
    def swap(self) -> tuple[int, ...] | None:
        """Index of each keypoint's left-right partner; None if the names have no sides."""
        return sides(self.keypoint_names)

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        facts = {
            "keypoint_names": self.keypoint_names,
            "split_from": self.split_from,
            "without_picture": self.without_picture,
        }
        with atomic_write(path) as file:
            np.savez(
                file,
                pictures=self.pictures,
                keypoints=self.keypoints,
                visibility=self.visibility,
                heldout=self.heldout,
                facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
            )

    @classmethod
    def load(cls, path: Path) -> LabelledPictures:
        """Read a file that `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            facts = json.loads(arrays["facts"].tobytes())
            return cls(
                **{name: arrays[name] for name in arrays.files if name != "facts"},
                **facts | {"keypoint_names": tuple(facts["keypoint_names"])},
            )


def match_job_labels(files: JobFiles, job_id: str, min_pictures: int) -> LabelledPictures | None:
    """Match a prepared job's labels to its pictures and save the result; return None if the job has no labels.

    Args:
        min_pictures: number of pictures that must be left to train on.

    Raises:
        BadLabels: the labels can't be read, match no picture, or leave nothing to fit, score or train on.
    """
    if not files.labels(job_id).exists():
        return None
    info = json.loads(files.pictures_info(job_id).read_text(encoding="utf-8"))
    clips = np.load(files.clips(job_id)) if files.clips(job_id).exists() else None
    try:
        labelled = match_labels(read_labels(files.labels(job_id)), info["names"], info["sizes"], clips)
    except LabelsError as error:
        raise BadLabels(f"the labels can't be used: {error}") from error
    left = int(training_rows(len(info["names"]), labelled, clips).sum())
    if left < min_pictures:
        raise BadLabels(
            f"{int(labelled.heldout.sum())} labelled pictures are held out, which leaves {left} to train on; "
            f"at least {min_pictures} are needed"
        )
    labelled.save(files.labels_of_prepared(job_id))
    return labelled


def match_labels(
    labels: Labels, names: Sequence[str], sizes: Sequence[Sequence[int]], clips: NDArray[np.int64] | None = None
) -> LabelledPictures:
    """Return the labelled pictures among N pictures.

    If the labels have no split, a fifth of the labelled pictures is held out by a hash of their names; of frames, a
    fifth of the labelled clips, because frames of one clip are too alike to be in both parts.

    Args:
        names: of the N pictures, as in the upload.
        sizes: width and height of each in pixels, its EXIF orientation applied.
        clips: number of each frame's clip (N,); None for stills.

    Raises:
        LabelsError: no picture has a label, a name matches twice, or a part of the split would be empty.
    """
    rows = labels.match(names)
    pictures = np.flatnonzero(rows >= 0)
    known_sizes = {labels.names[rows[index]]: (sizes[index][0], sizes[index][1]) for index in pictures.tolist()}
    matched = labels.rows(rows[pictures]).to_square(known_sizes)
    split = matched.split or hashed_split(
        [names[index] for index in pictures.tolist()], clips=None if clips is None else clips[pictures].tolist()
    )
    heldout = np.array([part == "test" for part in split], dtype=np.bool_)
    for is_empty, part in ((heldout.all(), "train"), (not heldout.any(), "test")):
        if is_empty:
            why = "" if matched.split or clips is None else ", because all are of one clip; add a split to the labels"
            raise LabelsError(f"none of {len(pictures)} labelled pictures is in the split '{part}'{why}")
    return LabelledPictures(
        pictures,
        matched.keypoints,
        matched.visibility.astype(np.float64),
        heldout,
        matched.keypoint_names,
        "labels" if matched.split else "names",
        len(labels) - len(pictures),
    )


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
