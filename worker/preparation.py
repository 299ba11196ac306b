"""An upload becomes a training set: archive or folder → pictures → squares in one file."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.config import PPLConfig
from service.contract.archives import ArchiveLimits, iter_pictures
from service.contract.errors import BadPicture, TooFewPictures, TrainingFailed
from service.contract.jobs import JobRecord, JobStatus
from service.contract.pictures import PictureLimits, fit_square, open_picture
from service.contract.store import JobFiles, training_folder, write_json
from worker.casework import Casework
from worker.custody import Custody, Stopping
from worker.metrics import TrainingMetrics
from worker.settings import WorkerSettings

logger = logging.getLogger(__name__)

_NAMED = 20  # skipped pictures named in the job
_LONGEST_NAME = 200


def config_of(settings: dict[str, Any]) -> PPLConfig:
    """The model's settings out of a job's. Raises SettingError."""
    return PPLConfig.from_dict({name: value for name, value in settings.items() if name != "preset"})


@dataclass
class Tally:
    """What became of an upload's pictures."""

    images: int = 0
    skipped: int = 0
    named: list[dict[str, str]] = field(default_factory=list)

    def skip(self, name: str, reason: str) -> None:
        """Count a picture that can't be read, and keep the first names."""
        self.skipped += 1
        if len(self.named) < _NAMED:
            self.named.append({"name": _shown(name), "reason": reason})

    def metrics(self) -> dict[str, Any]:
        """As the job shows it."""
        return {"images": self.images, "skipped": self.skipped, "skipped_files": list(self.named)}


class Preparer:
    """Does the ``validating`` of jobs."""

    def __init__(self, casework: Casework, files: JobFiles, settings: WorkerSettings, metrics: TrainingMetrics) -> None:
        self._casework = casework
        self._files = files
        self._settings = settings
        self._metrics = metrics

    def work(self, custody: Custody) -> None:
        """Prepare the job and queue it."""
        record = custody.write(_begin)
        if record.job.status.ended:
            self._casework.ended(record)  # as failed: it was begun too often
        if record.job.status is not JobStatus.VALIDATING:
            return
        try:
            tally = self._prepared(record) or self._prepare(record, custody)
        except Stopping:
            custody.write(_set_aside)
            raise

        def queue(record: JobRecord) -> None:
            record.move(JobStatus.QUEUED)
            record.starts = 0
            record.job.metrics = tally.metrics()

        custody.write(queue)
        self._files.archive(record.job.id).unlink(missing_ok=True)
        logger.info("job %s: %d pictures prepared, %d skipped", record.job.id, tally.images, tally.skipped)

    def _prepared(self, record: JobRecord) -> Tally | None:
        """What a process that died right after preparing had counted."""
        path = self._files.pictures_info(record.job.id)
        if not path.exists():
            return None
        info = json.loads(path.read_text(encoding="utf-8"))
        return Tally(info["count"], info["skipped_count"], info["skipped"])

    def _prepare(self, record: JobRecord, custody: Custody) -> Tally:
        job_id, side = record.job.id, config_of(record.job.settings).image_size
        limits = PictureLimits.of(self._settings)
        tally = Tally()

        def progress(record: JobRecord) -> None:
            record.job.metrics = tally.metrics()

        custody.findings = progress
        self._files.create(job_id)
        with SquareFile(self._files.pictures(job_id), side) as squares:
            for name, data in iter_pictures(self._source(record), ArchiveLimits.of(self._settings)):
                custody.check()
                try:
                    if isinstance(data, BadPicture):
                        raise data
                    square, _ = fit_square(open_picture(data, limits), side)
                except BadPicture as error:
                    tally.skip(name, error.detail)
                    self._metrics.pictures.labels("skipped").inc()
                else:
                    squares.append(square)
                    tally.images += 1
                    self._metrics.pictures.labels("read").inc()
                custody.report(progress)
        self._check_enough(tally)
        info = {"count": tally.images, "side": side, "skipped_count": tally.skipped, "skipped": tally.named}
        write_json(self._files.pictures_info(job_id), info)
        return tally

    def _source(self, record: JobRecord) -> Path:
        if record.source.kind == "folder":
            return training_folder(self._settings.data_root, record.source.folder or "")
        archive = self._files.archive(record.job.id)
        if not archive.exists():
            raise TrainingFailed("the uploaded archive is gone from the server; send the job again")
        return archive

    def _check_enough(self, tally: Tally) -> None:
        least = self._settings.training_min_pictures
        if tally.images >= least:
            return
        said = f"{tally.images} of {tally.images + tally.skipped} pictures could be read; at least {least} are needed"
        reasons = "; ".join(f"{item['name']}: {item['reason']}" for item in tally.named[:3])
        raise TooFewPictures(f"{said} ({reasons})" if reasons else said)


class SquareFile:
    """An .npy of uint8 (N, S, S, 3) written picture by picture, N known only at the end."""

    def __init__(self, path: Path, side: int) -> None:
        self._file = path.open("wb")
        self._side = side
        self._count = 0
        self._header_bytes = self._write_header()

    def append(self, square: NDArray[np.uint8]) -> None:
        """One picture (S, S, 3)."""
        self._file.write(np.ascontiguousarray(square).data)
        self._count += 1

    def __enter__(self) -> SquareFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if error is None:
                self._file.seek(0)
                assert self._write_header() == self._header_bytes  # numpy leaves room for a longer N
                self._file.flush()
                os.fsync(self._file.fileno())

    def _write_header(self) -> int:
        shape = (self._count, self._side, self._side, 3)
        np.lib.format.write_array_header_1_0(self._file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        return self._file.tell()


def _begin(record: JobRecord) -> None:
    if record.job.status is JobStatus.VALIDATING:
        record.begin()


def _set_aside(record: JobRecord) -> None:
    record.starts = 0  # a stop in good order is no death


def _shown(name: str) -> str:
    """A member's name as JSON can carry it: some hold bytes that are no text."""
    return name[-_LONGEST_NAME:].encode("utf-8", "replace").decode("utf-8")
