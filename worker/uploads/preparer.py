"""An upload becomes a training set: archive, folder or video → pictures and frames → squares in one file."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from model.config import PPLConfig
from service.contract.errors import TooFewPictures, TrainingFailed
from service.contract.jobs.files import JobFiles, training_folder
from service.contract.jobs.store import JobRecord, JobStatus
from service.contract.media.archives import ArchiveLimits, Member, iter_media, resolve_mode
from service.contract.media.fitting import fit_square, reducible
from service.contract.media.pictures import Picture
from service.contract.versions.store import write_json
from worker.jobs.held_job import Custody, Stopping
from worker.jobs.job_taking import Casework
from worker.metrics import TrainingMetrics
from worker.settings import WorkerSettings

from .file_counts import Tally, as_text
from .label_matching import take_labels
from .media_reader import MediaReader
from .square_files import TrainingSet

logger = logging.getLogger(__name__)


def config_of(settings: dict[str, Any]) -> PPLConfig:
    """The model's settings out of a job's. Raises SettingError."""
    return PPLConfig.from_dict({name: value for name, value in settings.items() if name != "preset"})


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
            labelled = take_labels(self._files, record.job.id, self._settings.training_min_pictures)
        except Stopping:
            custody.write(_set_aside)
            raise

        def queue(record: JobRecord) -> None:
            record.move(JobStatus.QUEUED)
            record.starts = 0
            record.job.metrics = tally.metrics()
            if labelled:
                record.job.metrics["held_out"] = int(labelled.heldout.sum())
            record.log(f"{tally.images} pictures prepared as {tally.mode}, {tally.skipped} skipped")
            for item in tally.named:
                record.log(f"skipped {item['name']}: {item['reason']}")
            record.pause_if_wanted()

        custody.write(queue)
        self._files.archive(record.job.id).unlink(missing_ok=True)
        logger.info(
            "job %s: %d pictures prepared as %s, %d skipped", record.job.id, tally.images, tally.mode, tally.skipped
        )

    def _prepared(self, record: JobRecord) -> Tally | None:
        """What a process that died right after preparing had counted."""
        path = self._files.pictures_info(record.job.id)
        if not path.exists():
            return None
        info = json.loads(path.read_text(encoding="utf-8"))
        return Tally(info["count"], info["skipped_count"], info["skipped"], info.get("mode"), info.get("clips", 0))

    def _prepare(self, record: JobRecord, custody: Custody) -> Tally:
        job_id, config = record.job.id, config_of(record.job.settings)
        tally = Tally()

        def progress(record: JobRecord) -> None:
            record.job.metrics = tally.metrics()

        custody.findings = progress
        self._files.create(job_id)
        pictures = videos = 0
        with TrainingSet(self._files.pictures(job_id), self._files.clips(job_id), config.image_size) as squares:

            def keep(picture: Picture, name: str, clip: str) -> None:
                square, _ = fit_square(picture, config.image_size)
                squares.append(square, name, clip, picture.size)

            folder = self._files.folder(job_id)
            fits = reducible(config.image_size)
            reader = MediaReader(keep, fits, tally, config.frames_per_clip, self._settings, folder, custody.check)
            for name, found in iter_media(self._source(record), ArchiveLimits.of(self._settings)):
                custody.check()
                seen = tally.images, tally.skipped
                if isinstance(found, Member):
                    videos += 1
                    tally.mode = resolve_mode(config.mode, pictures, videos)
                    reader.take_video(found, (record.source.name or name) if found.bare_video else name)
                else:
                    pictures += 1
                    tally.mode = resolve_mode(config.mode, pictures, videos)
                    reader.take_picture(found, name)
                self._metrics.pictures.labels("read").inc(tally.images - seen[0])
                self._metrics.pictures.labels("skipped").inc(tally.skipped - seen[1])
                custody.report(progress)
        if tally.mode == "clips":
            tally.clips, too_short = squares.arrange()
            tally.leave_out(too_short)
        self._check_enough(tally, videos)
        info = {
            "count": tally.images,
            "side": config.image_size,
            "mode": tally.mode,
            "clips": tally.clips,
            "skipped_count": tally.skipped,
            "skipped": tally.named,
            "names": [as_text(name) for name in squares.names],
            "sizes": squares.sizes,
        }
        write_json(self._files.pictures_info(job_id), info)
        return tally

    def _source(self, record: JobRecord) -> Path:
        if record.source.kind == "folder":
            return training_folder(self._settings.data_root, record.source.folder or "")
        archive = self._files.archive(record.job.id)
        if not archive.exists():
            raise TrainingFailed("the uploaded archive is gone from the server; send the job again")
        return archive

    def _check_enough(self, tally: Tally, videos: int) -> None:
        least = self._settings.training_min_pictures
        if tally.images >= least:
            return
        if videos or tally.mode == "clips":
            said = f"{tally.images} frames of {tally.clips} clips could be read; at least {least} are needed"
        else:
            total = tally.images + tally.skipped
            said = f"{tally.images} of {total} pictures could be read; at least {least} are needed"
        reasons = "; ".join(f"{item['name']}: {item['reason']}" for item in tally.named[:3])
        raise TooFewPictures(f"{said} ({reasons})" if reasons else said)


def _begin(record: JobRecord) -> None:
    if record.job.status is JobStatus.VALIDATING:
        record.begin()


def _set_aside(record: JobRecord) -> None:
    record.starts = 0  # a stop in good order is no death
