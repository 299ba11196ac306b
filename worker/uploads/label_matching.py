"""Labels that came with a job: matched to its pictures, and split into those to learn from and those held out.

Training never sees a label; it only leaves the held-out pictures out. The labels serve to measure what was learned.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.scoring.label_files import read_labels
from model.scoring.labels import Labels, LabelsError, hashed_split
from model.scoring.protocols import sides
from service.contract.errors import BadLabels
from service.contract.jobs.files import JobFiles


@dataclass(frozen=True)
class Labelled:
    """The labelled pictures of a job, n of its N, J keypoints each.

    Attributes:
        pictures: int64 (n,), which of the prepared pictures they are, in rising order.
        keypoints: (n, J, 2) in [0, 1] of the model's square.
        visibility: (n, J), non-zero where a label counts.
        heldout: bool (n,), whether a picture is left out of training.
        keypoint_names: J names.
        split_from: who said which are held out: "labels", or "names" (a hash of them).
        without_picture: labels that belong to no picture of the job.
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
        """For each keypoint that of the other side, told by the names; None where no two are partners."""
        return sides(self.keypoint_names)

    def save(self, path: Path) -> None:
        """Write it so that a reader sees all of it or nothing."""
        facts = {
            "keypoint_names": self.keypoint_names,
            "split_from": self.split_from,
            "without_picture": self.without_picture,
        }
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        with draft.open("wb") as file:
            np.savez(
                file,
                pictures=self.pictures,
                keypoints=self.keypoints,
                visibility=self.visibility,
                heldout=self.heldout,
                facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)

    @classmethod
    def load(cls, path: Path) -> Labelled:
        """The inverse of :meth:`save`."""
        with np.load(path, allow_pickle=False) as arrays:
            facts = json.loads(arrays["facts"].tobytes())
            return cls(
                arrays["pictures"],
                arrays["keypoints"],
                arrays["visibility"],
                arrays["heldout"],
                tuple(facts["keypoint_names"]),
                facts["split_from"],
                facts["without_picture"],
            )


def take_labels(files: JobFiles, job_id: str, least: int) -> Labelled | None:
    """Match a prepared job's labels to its pictures, and keep the result beside them; None where it has none.

    Args:
        least: pictures that must be left to train on.

    Raises:
        BadLabels: they can't be read, name no picture of the job, or leave nothing to fit, score or train on.
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
    if left < least:
        raise BadLabels(
            f"{int(labelled.heldout.sum())} labelled pictures are held out and leave {left} to train on; "
            f"at least {least} are needed"
        )
    labelled.save(files.labelled(job_id))
    return labelled


def match_labels(
    labels: Labels, names: Sequence[str], sizes: Sequence[Sequence[int]], clips: NDArray[np.int64] | None = None
) -> Labelled:
    """The labelled ones among some pictures.

    Where the labels give no split, a fifth of the labelled pictures is held out by a hash of their names, or of
    the labelled clips by theirs: frames of one clip are too alike to be in both.

    Args:
        names: of the N pictures, as in the upload.
        sizes: width and height of each in pixels, its EXIF orientation applied.
        clips: which clip each is a frame of, where they are frames.

    Raises:
        LabelsError: no picture has a label, names fit twice, or a split would be empty.
    """
    rows = labels.match(names)
    pictures = np.flatnonzero(rows >= 0)
    known = {labels.names[rows[index]]: (sizes[index][0], sizes[index][1]) for index in pictures.tolist()}
    chosen = labels.rows(rows[pictures]).to_square(known)
    split = chosen.split or hashed_split(
        [names[index] for index in pictures.tolist()], clips=None if clips is None else clips[pictures].tolist()
    )
    heldout = np.array([mine == "test" for mine in split], dtype=np.bool_)
    for lacking, what in ((heldout.all(), "train"), (not heldout.any(), "test")):
        if lacking:
            why = "" if chosen.split or clips is None else ", as all of them are of one clip; give a split"
            raise LabelsError(f"none of {len(pictures)} labelled pictures is in the split '{what}'{why}")
    return Labelled(
        pictures,
        chosen.keypoints,
        chosen.visibility.astype(np.float64),
        heldout,
        chosen.keypoint_names,
        "labels" if chosen.split else "names",
        len(labels) - len(pictures),
    )


def training_rows(count: int, labelled: Labelled | None, clips: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
    """Which of ``count`` pictures to train on (count,): not those held out, nor a frame that is alone in its clip."""
    rows = np.ones(count, dtype=np.bool_)
    if labelled is not None:
        rows[labelled.pictures[labelled.heldout]] = False
    if clips is not None:
        left = np.bincount(clips[rows], minlength=int(clips.max()) + 1)
        rows &= left[clips] > 1
    return rows
