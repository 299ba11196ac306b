"""Turn an upload into a training set: archive, folder or video → pictures and frames → squares in one file."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from model.config import PPLConfig
from service.contract.durable_files import write_json
from service.contract.errors import TooFewPictures, TrainingFailed
from service.contract.jobs.files import JobFiles, training_folder
from service.contract.jobs.store import JobRecord, JobStatus
from service.contract.media.archives import ArchiveLimits, Member, iter_media, resolve_mode
from service.contract.media.fitting import fit_square, reduction_for_boxes
from service.contract.media.pictures import Picture
from worker.jobs.held_job import HeldJob, Stopping
from worker.jobs.job_taking import JobTaker
from worker.metrics import TrainingMetrics
from worker.settings import WorkerSettings

from .label_matching import match_job_labels
from .media_reader import FileCounts, MediaReader, replace_surrogates
from .square_files import TrainingSet

logger = logging.getLogger(__name__)


def parse_config(settings: dict[str, Any]) -> PPLConfig:
    """Return the model's settings from a job's. Raises SettingError."""
    return PPLConfig.from_dict({name: value for name, value in settings.items() if name != "preset"})


class Preparer:
    """A preparer of jobs that are `validating`."""

    def __init__(self, taker: JobTaker, files: JobFiles, settings: WorkerSettings, metrics: TrainingMetrics) -> None:
        self._taker = taker
        self._files = files
        self._settings = settings
        self._metrics = metrics

    def prepare(self, held: HeldJob) -> None:
        """Prepare a job's pictures and labels, and queue the job.

        Raises:
            TooFewPictures, BadLabels, BadArchive, TrainingFailed: the upload can't be used.
            What `HeldJob.check` and `HeldJob.write` raise.
        """
        record = held.write(_begin)
        if record.job.status.ended:
            self._taker.clean_up(record)  # it failed because it was started too often
        if record.job.status is not JobStatus.VALIDATING:
            return
        job_id = record.job.id
        try:
            counts = self._read_counts(job_id) or self._prepare_pictures(record, held)
            labelled = match_job_labels(self._files, job_id, self._settings.training_min_pictures)
        except Stopping:
            held.write(_reset_starts)  # an orderly stop is not a crash
            raise

        def queue(record: JobRecord) -> None:
            record.move(JobStatus.QUEUED)
            _reset_starts(record)
            record.job.metrics = counts.to_metrics()
            if labelled:
                record.job.metrics["held_out"] = int(labelled.heldout.sum())
            record.log(f"{counts.images} pictures prepared as {counts.mode}, {counts.skipped} skipped")
            for item in counts.skipped_files:
                record.log(f"skipped {item['name']}: {item['reason']}")
            record.pause_if_requested()

        held.write(queue)
        self._files.archive(job_id).unlink(missing_ok=True)
        logger.info("job=%s: prepared, pictures=%d skipped=%d", job_id, counts.images, counts.skipped)

    def _read_counts(self, job_id: str) -> FileCounts | None:
        """Return the counts of a process that crashed right after preparing the pictures."""
        path = self._files.pictures_info(job_id)
        if not path.exists():
            return None
        info = json.loads(path.read_text(encoding="utf-8"))
        return FileCounts(info["count"], info["skipped_count"], info["skipped"], info.get("mode"), info.get("clips", 0))

    def _prepare_pictures(self, record: JobRecord, held: HeldJob) -> FileCounts:
        job_id, config = record.job.id, parse_config(record.job.settings)
        counts = FileCounts()

        def write_counts(record: JobRecord) -> None:
            record.job.metrics = counts.to_metrics()

        held.on_failure = write_counts
        self._files.create(job_id)
        pictures = videos = 0
        with TrainingSet(self._files.pictures(job_id), self._files.clips(job_id), config.image_size) as squares:

            def keep(picture: Picture, name: str, clip: str) -> None:
                square, _ = fit_square(picture, config.image_size)
                squares.append(square, name, clip, picture.size)

            folder = self._files.folder(job_id)
            reduction = reduction_for_boxes(config.image_size)
            reader = MediaReader(keep, reduction, counts, config.frames_per_clip, self._settings, folder, held.check)
            for name, media in iter_media(self._find_source(record), ArchiveLimits.of(self._settings)):
                held.check()
                images, skipped = counts.images, counts.skipped
                is_video = isinstance(media, Member)
                videos, pictures = videos + is_video, pictures + (not is_video)
                counts.mode = resolve_mode(config.mode, pictures, videos)
                if isinstance(media, Member):
                    reader.read_video(media, (record.source.name or name) if media.bare_video else name)
                else:
                    reader.read_picture(media, name)
                self._metrics.pictures.labels("read").inc(counts.images - images)
                self._metrics.pictures.labels("skipped").inc(counts.skipped - skipped)
                held.report(write_counts)
        if counts.mode == "clips":
            counts.clips, too_short = squares.arrange_clips()
            counts.drop_short_clips(too_short)
        self._check_enough(counts, videos)
        info = {
            "count": counts.images,
            "side": config.image_size,
            "mode": counts.mode,
            "clips": counts.clips,
            "skipped_count": counts.skipped,
            "skipped": counts.skipped_files,
            "names": [replace_surrogates(name) for name in squares.names],
            "sizes": squares.sizes,
        }
        write_json(self._files.pictures_info(job_id), info)
        return counts

    def _find_source(self, record: JobRecord) -> Path:
        if record.source.kind == "folder":
            return training_folder(self._settings.data_root, record.source.folder or "")
        archive = self._files.archive(record.job.id)
        if not archive.exists():
            raise TrainingFailed("the uploaded archive was deleted from the server; send the job again")
        return archive

    def _check_enough(self, counts: FileCounts, videos: int) -> None:
        least = self._settings.training_min_pictures
        if counts.images >= least:
            return
        if videos or counts.mode == "clips":
            detail = f"{counts.images} frames of {counts.clips} clips could be read; at least {least} are needed"
        else:
            total = counts.images + counts.skipped
            detail = f"{counts.images} of {total} pictures could be read; at least {least} are needed"
        reasons = "; ".join(f"{item['name']}: {item['reason']}" for item in counts.skipped_files[:3])
        raise TooFewPictures(f"{detail} ({reasons})" if reasons else detail)


def _begin(record: JobRecord) -> None:
    if record.job.status is JobStatus.VALIDATING:
        record.count_start()


def _reset_starts(record: JobRecord) -> None:
    record.starts = 0
