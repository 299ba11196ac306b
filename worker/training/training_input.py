"""What a job's trainer is given: the prepared pictures without those held out, their clips, and the prior."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.data import Images
from model.version.prior import PosePrior
from service.contract.errors import TrainingFailed
from service.contract.jobs.files import JobFiles
from worker.uploads.label_matching import Labelled, training_rows

_COPIED_AT_ONCE = 1024  # pictures


@dataclass(frozen=True)
class TrainingInput:
    """What a job trains on.

    Attributes:
        images: uint8 (n, S, S, 3), a memory map.
        clips: which clip each is a frame of, int64 (n,); None for stills.
        prior: to start from, where the job has one.
    """

    images: Images
    clips: NDArray[np.int64] | None = None
    prior: PosePrior | None = None


def prepared_pictures(files: JobFiles, job_id: str) -> Images:
    """All prepared pictures of a job, uint8 (N, S, S, 3), a memory map. Raises TrainingFailed."""
    try:
        return _mapped(files.pictures(job_id))
    except FileNotFoundError as error:
        raise TrainingFailed("its prepared pictures are gone from the server; send the job again") from error


def labelled_pictures(files: JobFiles, job_id: str) -> Labelled | None:
    """The job's labelled pictures, where labels came."""
    path = files.labelled(job_id)
    return Labelled.load(path) if path.exists() else None


def training_input(files: JobFiles, job_id: str) -> TrainingInput:
    """What a job trains on; a picture that is held out is not among it.

    Raises:
        TrainingFailed: files of the job are gone.
    """
    images = prepared_pictures(files, job_id)
    clips = np.load(files.clips(job_id)) if files.clips(job_id).exists() else None
    prior = None
    if files.prior(job_id).exists():
        prior = PosePrior.from_json(json.loads(files.prior(job_id).read_text(encoding="utf-8")))
    rows = training_rows(len(images), labelled_pictures(files, job_id), clips)
    if not rows.all():
        images = _without(images, rows, files, job_id)
        clips = None if clips is None else clips[rows]
    return TrainingInput(images, clips, prior)


def _without(images: Images, rows: NDArray[np.bool_], files: JobFiles, job_id: str) -> Images:
    """Some of the pictures, in a file of their own: there may be more of them than memory holds."""
    path = files.training_pictures(job_id)
    if not path.exists():
        chosen = np.flatnonzero(rows)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        out = np.lib.format.open_memmap(draft, "w+", np.uint8, (len(chosen), *images.shape[1:]))
        for first in range(0, len(chosen), _COPIED_AT_ONCE):
            out[first : first + _COPIED_AT_ONCE] = images[chosen[first : first + _COPIED_AT_ONCE]]
        out.flush()
        os.replace(draft, path)
    return _mapped(path)


def _mapped(path: Path) -> Images:
    # copy-on-write: torch wants memory that could be written to
    images: Images = np.load(path, mmap_mode="c", allow_pickle=False)
    return images
