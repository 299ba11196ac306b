"""Load what a job's trainer needs: the prepared pictures that are not held out, their clips and the prior."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.data import Images
from model.version.prior import PosePrior
from service.contract.durable_files import atomic_write
from service.contract.errors import TrainingFailed
from service.contract.jobs.files import JobFiles
from worker.uploads.label_matching import LabelledPictures, training_rows

_COPY_BATCH = 1024  # pictures


@dataclass(frozen=True)
class TrainingInput:
    """The pictures, clips and prior that a job trains on.

    Attributes:
        images: uint8 (n, S, S, 3), a memory map.
        clips: number of each frame's clip, int64 (n,); None for stills.
        prior: a PosePrior to start from, if the job has one.
    """

    images: Images
    clips: NDArray[np.int64] | None = None
    prior: PosePrior | None = None


def load_pictures(files: JobFiles, job_id: str) -> Images:
    """Return all prepared pictures of a job, uint8 (N, S, S, 3), memory-mapped. Raises TrainingFailed if missing."""
    try:
        return _map(files.pictures(job_id))
    except FileNotFoundError as error:
        raise TrainingFailed("the job's prepared pictures were deleted from the server; send the job again") from error


def load_labelled(files: JobFiles, job_id: str) -> LabelledPictures | None:
    """Return the job's labelled pictures; None if it has no labels."""
    path = files.labels_of_prepared(job_id)
    return LabelledPictures.load(path) if path.exists() else None


def load_training_input(files: JobFiles, job_id: str) -> TrainingInput:
    """Return what a job trains on, without the held-out pictures. Raises TrainingFailed if files are missing."""
    images = load_pictures(files, job_id)
    clips = np.load(files.clips(job_id)) if files.clips(job_id).exists() else None
    prior = None
    if files.prior(job_id).exists():
        prior = PosePrior.from_json(json.loads(files.prior(job_id).read_text(encoding="utf-8")))
    rows = training_rows(len(images), load_labelled(files, job_id), clips)
    if not rows.all():
        images = _select(images, rows, files.training_pictures(job_id))
        clips = None if clips is None else clips[rows]
    return TrainingInput(images, clips, prior)


def _select(images: Images, rows: NDArray[np.bool_], path: Path) -> Images:
    """Copy the chosen rows into a file of their own and map it; they may not fit in memory."""
    if not path.exists():
        chosen = np.flatnonzero(rows)
        with atomic_write(path) as file:
            out = np.lib.format.open_memmap(file.name, "w+", np.uint8, (len(chosen), *images.shape[1:]))
            for first in range(0, len(chosen), _COPY_BATCH):
                out[first : first + _COPY_BATCH] = images[chosen[first : first + _COPY_BATCH]]
            out.flush()
    return _map(path)


def _map(path: Path) -> Images:
    # copy-on-write, because torch needs writable memory
    images: Images = np.load(path, mmap_mode="c", allow_pickle=False)
    return images
