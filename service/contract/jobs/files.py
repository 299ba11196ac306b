"""The data root on disk: the files of jobs that have not ended, and folders of pictures that jobs name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from service.contract.durable_files import folder_names
from service.contract.errors import BadFolder, BadLabels, BadRequest

from .job import check_job_id, is_job_id

MAX_LABELS_BYTES = 64 * 2**20
# names below the data root that no job may take its files from
_OWN = ("categories", "datasets", "estimates", "jobs", "keys", "valkey", "logs", "first-api-key", "webhook-secret")


class JobFiles:
    """The files of jobs that have not ended: upload, prepared pictures, checkpoint."""

    def __init__(self, data_root: Path) -> None:
        self._root = data_root / "jobs"

    def folder(self, job_id: str) -> Path:
        """jobs/<id>. Raises UnknownJob for what can't be an id."""
        return self._root / check_job_id(job_id)

    def create(self, job_id: str) -> Path:
        """The job's folder, made if need be."""
        folder = self.folder(job_id)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def archive(self, job_id: str) -> Path:
        """The upload as it came."""
        return self.folder(job_id) / "archive"

    def pictures(self, job_id: str) -> Path:
        """The prepared pictures, uint8 (N, S, S, 3), .npy."""
        return self.folder(job_id) / "pictures.npy"

    def pictures_info(self, job_id: str) -> Path:
        """What was prepared and what was skipped; written last, so its presence means prepared."""
        return self.folder(job_id) / "pictures.json"

    def clips(self, job_id: str) -> Path:
        """Of which clip each prepared picture is, int64 (N,), .npy; there only where the job learns from clips."""
        return self.folder(job_id) / "clips.npy"

    def labels(self, job_id: str) -> Path:
        """The labels as they came, where any did; training never reads them."""
        return self.folder(job_id) / "labels"

    def labelled(self, job_id: str) -> Path:
        """The labels matched to the prepared pictures, .npz; the worker's own."""
        return self.folder(job_id) / "labelled.npz"

    def training_pictures(self, job_id: str) -> Path:
        """The prepared pictures without those held out, .npy; there only where any are."""
        return self.folder(job_id) / "training.npy"

    def prior(self, job_id: str) -> Path:
        """The prior that training starts from, checked, where one came; as a version's prior.json."""
        return self.folder(job_id) / "prior.json"

    def start(self, job_id: str) -> Path:
        """The weights of the version that training goes on from, where the job names one."""
        return self.folder(job_id) / "start.safetensors"

    def checkpoint(self, job_id: str) -> Path:
        """The trainer's checkpoint folder."""
        return self.folder(job_id) / "checkpoint"

    def remove(self, job_id: str) -> None:
        """Remove all of a job's files; nothing to do where there are none."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.folder(job_id))

    def ids(self) -> list[str]:
        """Ids of the jobs that have files."""
        return sorted(name for name in folder_names(self._root) if is_job_id(name))


def training_folder(data_root: Path, name: str) -> Path:
    """A folder of pictures that a job names, below the data root.

    Args:
        name: relative to the data root, or absolute and inside of it.

    Raises:
        BadFolder: not there, not below the data root once links are followed, or one of the
            folders that the platform itself keeps.
    """
    return _below(data_root, name, "folder", Path.is_dir, BadFolder)


def training_file(data_root: Path, name: str) -> Path:
    """A file of labels that a job names, below the data root; as :func:`training_folder`. Raises BadLabels."""
    return _below(data_root, name, "file", Path.is_file, BadLabels)


def _below(data_root: Path, name: str, kind: str, is_kind: Callable[[Path], bool], refused: type[BadRequest]) -> Path:
    root = data_root.resolve()
    said = f"{kind} {name[:200]!r}"
    try:
        path = (root / name).resolve()
        exists = is_kind(path)
    except (OSError, RuntimeError, ValueError) as error:  # name too long, circle of links, NUL in it
        raise refused(f"{said} is not a {kind} below the data root") from error
    if path == root or not path.is_relative_to(root):
        raise refused(f"{said} is not a {kind} below the data root")
    if path.relative_to(root).parts[0] in _OWN:
        raise refused(f"{said} belongs to the platform itself; put what you train on into a folder of its own")
    if not exists:
        raise refused(f"{said} does not exist below the data root")
    return path
