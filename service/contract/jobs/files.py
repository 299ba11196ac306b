"""Files of unfinished jobs, and checks of what jobs start from: folders of pictures, files of labels, and priors.

Priors are checked by the model's own rules (:mod:`model.version.prior_values`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partialmethod
from pathlib import Path
from typing import Any

from model.version.prior_values import PriorValues
from model.version.prior_values import read_prior as read_values
from service.contract.durable_files import folder_names
from service.contract.errors import BadFolder, BadLabels, BadPrior, BadRequest, StoreUnavailable
from service.contract.settings import CommonSettings
from service.contract.shared_folders import SharedFolders

from .job import check_job_id, is_job_id

MAX_LABELS_BYTES = 64 * 2**20
MAX_PRIOR_BYTES = 2**20
# names below the data root that jobs must not read
_RESERVED = (
    "categories",
    "datasets",
    "estimates",
    "jobs",
    "keys",
    "shared",
    "valkey",
    "logs",
    "first-api-key",
    "stack.lock",
    "webhook-secret",
)


# also in the folder of the version that the job publishes
PREVIEW = "preview.png"
BOXES = "boxes.csv"


class JobFiles:
    """The files of unfinished jobs: upload, prepared pictures, checkpoint.

    With ``shared`` the folders below the data root are copies of those in an object store.
    """

    def __init__(self, data_root: Path, shared: SharedFolders | None = None) -> None:
        self._root, self._shared = data_root / "jobs", shared

    @classmethod
    def open(cls, settings: CommonSettings) -> JobFiles:
        """Return the files in PPL_STORE_URL, or those below the data root without it."""
        return cls(settings.data_root, SharedFolders.open(settings, "jobs"))

    def folder(self, job_id: str) -> Path:
        """Return jobs/<id>. Raises UnknownJob for an invalid id."""
        return self._root / check_job_id(job_id)

    def create(self, job_id: str) -> Path:
        """Create the job's folder if missing, and return it."""
        folder = self.folder(job_id)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _path(self, job_id: str, name: str) -> Path:
        return self.folder(job_id) / name

    archive = partialmethod(_path, name="archive")
    labels = partialmethod(_path, name="labels")  # as uploaded; training never reads them
    boxes = partialmethod(_path, name="boxes")  # as uploaded
    found_boxes = partialmethod(_path, name=BOXES)  # our CSV, of every picture read; only if pictures are cut out
    prior = partialmethod(_path, name="prior.json")  # checked, that training starts from; as a version's
    start = partialmethod(_path, name="start.safetensors")  # weights that training continues from
    preview = partialmethod(_path, name=PREVIEW)  # PNG of the model's state, replaced at each checkpoint
    checkpoint = partialmethod(_path, name="checkpoint")  # the trainer's folder
    pictures = partialmethod(_path, name="pictures.npy")  # prepared, uint8 (N, S, S, 3)
    pictures_info = partialmethod(_path, name="pictures.json")  # written last: it exists once all is prepared
    labelled = partialmethod(_path, name="labelled.npz")  # the labels matched to the pictures
    clips = partialmethod(_path, name="clips.npy")  # number of each picture's clip, int64 (N,); only in mode clips
    training_pictures = partialmethod(_path, name="training.npy")  # without held-out ones; only if some are held out

    def read(self, job_id: str, name: str) -> bytes:
        """Return a file's content as it was last sent. Raises FileNotFoundError."""
        return self._shared.read(check_job_id(job_id), name) if self._shared else self._path(job_id, name).read_bytes()

    def fetch(self, job_id: str) -> None:
        """Fetch the files of a job that other machines sent."""
        if self._shared:
            self._shared.fetch(job_id, self.folder(job_id))

    def send(self, job_id: str) -> None:
        """Let other machines have a job's files. Raises Replaced if one of them changed the files since."""
        if self._shared:
            self._shared.send(job_id, self.folder(job_id))

    def hand_over(self, job_id: str) -> None:
        """Send a job's files, and keep no copy."""
        if self._shared:
            self.create(job_id)  # a job on a folder may have none
            self.send(job_id)
            shutil.rmtree(self.folder(job_id), ignore_errors=True)

    def remove(self, job_id: str) -> None:
        """Remove all of a job's files. Idempotent. An object store that is away is swept later."""
        if self._shared:
            with suppress(StoreUnavailable):
                self._shared.remove(check_job_id(job_id))
        with suppress(FileNotFoundError):
            shutil.rmtree(self.folder(job_id))

    def seconds_since_sent(self) -> dict[str, float]:
        """Return how long ago each job's files were last sent, by the object store's clock; empty without one."""
        found = self._shared.seconds_since_change() if self._shared else {}
        return {job_id: age_s for job_id, age_s in found.items() if is_job_id(job_id)}

    def ids(self) -> list[str]:
        """Return the ids of jobs that have files."""
        return sorted(name for name in folder_names(self._root) if is_job_id(name))


def training_folder(data_root: Path, name: str) -> Path:
    """Return the path of a folder of pictures that a job refers to, relative to the data root or absolute.

    Raises:
        BadFolder: it does not exist, is outside of the data root once links are followed, or is reserved.
    """
    return _resolve_below(data_root, name, "folder", Path.is_dir, BadFolder)


def training_file(data_root: Path, name: str, error: type[BadRequest] = BadLabels) -> Path:
    """Return the path of a file that a job refers to, as :func:`training_folder`; `error` is raised instead."""
    return _resolve_below(data_root, name, "file", Path.is_file, error)


def _resolve_below(
    data_root: Path, name: str, kind: str, is_kind: Callable[[Path], bool], error_class: type[BadRequest]
) -> Path:
    root = data_root.resolve()
    label = f"{kind} {name[:200]!r}"
    try:
        path = (root / name).resolve()
        exists = is_kind(path)
    except (OSError, RuntimeError, ValueError):  # name too long, loop of links, NUL in it
        path, exists = root, False
    if path == root or not path.is_relative_to(root):
        raise error_class(f"{label} is not a {kind} below the data root")
    if path.relative_to(root).parts[0] in _RESERVED:
        raise error_class(f"{label} belongs to the platform itself; put training data into another folder")
    if not exists:
        raise error_class(f"{label} does not exist below the data root")
    return path


def read_prior(data: bytes) -> PriorValues:
    """Parse and check an uploaded prior. Raises BadPrior."""
    if len(data) > MAX_PRIOR_BYTES:
        raise BadPrior(f"the prior has {len(data)} bytes; at most {MAX_PRIOR_BYTES} are allowed")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadPrior(f"the prior is not JSON: {str(error)[:200]}") from error
    return check_prior(document)


def check_prior(document: Any) -> PriorValues:
    """Parse and check a prior's document, as of ``GET /priors/{category}`` and in prior.json. Raises BadPrior."""
    try:
        return read_values(document)
    except ValueError as error:
        raise BadPrior(f"the prior is not valid: {error}") from error


def document_of(prior: PriorValues) -> dict[str, Any]:
    """Return a prior as a JSON document for :func:`check_prior`."""
    count = len(prior.keypoint_prior)
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    return {
        "num_keypoints": count,
        "keypoint_names": list(prior.keypoint_names),
        "keypoint_prior": [list(point) for point in prior.keypoint_prior],
        "links": [{"i": i, "j": j, "weight": weight} for (i, j), weight in zip(pairs, prior.link_weights, strict=True)],
        "link_width": prior.link_width,
        "keypoint_prior_source": prior.keypoint_prior_source,
    }
