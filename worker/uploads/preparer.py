"""Turn an upload into a training set: archive, folder or video → pictures and frames → squares in one file.

Labels are matched to the pictures and split them into training and held-out pictures. Training never sees a label; it
only leaves out the held-out pictures. The labels measure what was learned.
"""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.config import PPLConfig
from model.scoring.label_files import read_labels
from model.scoring.label_matching import LabelledPictures, match_labels, training_rows
from model.scoring.labels import LabelsError
from service.contract.durable_files import atomic_write, write_json
from service.contract.errors import BadBoxes, BadLabels, NoHeading, TooFewPictures, TrainingFailed
from service.contract.jobs.files import JobFiles, training_folder
from service.contract.jobs.job import Job
from service.contract.jobs.store import JobRecord, JobStatus
from service.contract.jobs.warnings import PictureWarning
from service.contract.media import motion
from service.contract.media.archives import ArchiveLimits, Member, iter_media, resolve_mode
from service.contract.media.boxes import FoundBox, check_box, fit_found_box, parse_box_file, write_csv
from service.contract.media.fitting import Frame, reduction_for_boxes
from service.contract.media.locating import Locations, MotionFinder, fills_frames
from service.contract.media.pictures import Picture
from service.contract.media.zip_names import HINT as NAMES_HINT
from service.contract.media.zip_names import replace_surrogates
from worker.jobs import HeldJob, JobTaker, Stopping
from worker.settings import WorkerSettings

from .media_reader import FileCounts, MediaReader, TrainingSet
from .placement import find_warnings, shrink, spread_rows
from .unused import find_unused_boxes, find_unused_labels

logger = logging.getLogger(__name__)


def parse_config(settings: dict[str, Any]) -> PPLConfig:
    """Return the model's settings from a job's. Raises SettingError."""
    return PPLConfig.from_dict({name: value for name, value in settings.items() if name != "preset"})


@dataclass(frozen=True)
class Preparer:
    """A preparer of jobs that are `validating`."""

    taker: JobTaker
    settings: WorkerSettings

    def prepare(self, held: HeldJob) -> None:
        """Prepare a job's pictures and labels, and queue the job.

        Raises TooFewPictures, BadLabels, BadArchive or TrainingFailed if the upload can't be used.
        """
        record = held.write(_begin)
        if record.job.status.ended:
            self.taker.clean_up(record)  # it failed because it was started too often
        if record.job.status is not JobStatus.VALIDATING:
            return
        job_id = record.job.id
        try:
            counts = self._read_counts(job_id) or self._prepare_pictures(record, held)
            labelled = self._check_labels(job_id, counts.images)
            frames_per_clip = parse_config(record.job.settings).frames_per_clip
            warnings = [*counts.warnings, *find_unused_labels(labelled, frames_per_clip)]
        except Stopping:
            held.write(_reset_starts)  # an orderly stop is not a crash
            raise

        def queue(record: JobRecord) -> None:
            record.move(JobStatus.QUEUED)
            _reset_starts(record)
            record.job.metrics, record.job.warnings = counts.to_metrics(), warnings
            if labelled:
                record.job.metrics["held_out"] = int(labelled.heldout.sum())
            record.log(f"{counts.images} pictures prepared as {counts.mode}, {counts.skipped} skipped")
            if located := counts.located:
                record.log("; ".join(f"{name}: {value}" for name, value in located.items() if value is not None))
            for item in counts.skipped_files:
                record.log(f"skipped {item['name']}: {item['reason']}")
            for warning in warnings:
                record.log(f"warning: {warning.detail}")
            record.pause_if_requested()

        self.taker.files.send(job_id)  # any worker may train it
        held.write(queue)
        self.taker.files.archive(job_id).unlink(missing_ok=True)
        self.taker.files.send(job_id)
        logger.info("job=%s: prepared, pictures=%d skipped=%d", job_id, counts.images, counts.skipped)

    def _read_counts(self, job_id: str) -> FileCounts | None:
        """Return the counts of a process that crashed right after preparing the pictures."""
        path = self.taker.files.pictures_info(job_id)
        if not path.exists():
            return None
        info = json.loads(path.read_text(encoding="utf-8"))
        named = {name: info[name] for name in ("mode", "clips", "located") if name in info}
        warnings = [PictureWarning.model_validate(warning) for warning in info.get("warnings", [])]
        return FileCounts(info["count"], info["skipped_count"], info["skipped"], warnings=warnings, **named)

    def _look_at_pictures(self, job_id: str, clips: list[str], *, is_located: bool) -> list[PictureWarning]:
        pictures = np.load(self.taker.files.pictures(job_id), mmap_mode="r", allow_pickle=False)
        rows = spread_rows(len(pictures))
        copies = [shrink(pictures[row]) for row in rows]
        return find_warnings(copies, [clips[row] for row in rows], is_located=is_located)

    def _prepare_pictures(self, record: JobRecord, held: HeldJob) -> FileCounts:
        job_id, files, config = record.job.id, self.taker.files, parse_config(record.job.settings)
        counts = FileCounts()

        def write_counts(record: JobRecord) -> None:
            record.job.metrics = counts.to_metrics()

        held.on_failure = write_counts
        folder = files.create(job_id)
        locations = self._locate(record, held, config).align(config.align)
        counts.located = locations.summary
        pictures, videos, boxes = 0, 0, list[tuple[str, FoundBox | None]]()
        with TrainingSet(files.pictures(job_id), files.clips(job_id), config.image_size) as squares:
            is_aligned = locations.is_aligned

            def keep(picture: Picture, name: str, clip: str) -> str | None:
                found: list[FoundBox | None] = [*locations.find_all(name, picture.size)]
                if counts.mode == "clips":  # pairs frames, and boxes do not say which animal is which
                    found = found[:1]
                crops = found or [None]
                if len(crops) > 1 and len(squares.names) + len(crops) > limits.max_files:
                    raise BadBoxes(
                        f"the boxes give more than {limits.max_files} pictures to train on, which is the limit; leave "
                        "fewer boxes"
                    )
                before, missing = len(squares.names), locations.missing
                for each in crops:
                    held.check()
                    boxes.append((replace_surrogates(name), each))
                    if each or locations.whole:
                        try:
                            if each:
                                check_box(each.box, *picture.size)
                            square, frame = fit_found_box(picture, config.image_size, each, aligned=is_aligned)
                        except (BadBoxes, NoHeading) as error:
                            missing = error.detail
                        else:
                            squares.append(square, name, clip, picture.size, frame, picture.orientation)
                if before == len(squares.names):
                    return missing
                counts.images += len(squares.names) - before - 1
                return None

            # of a picture with a box, its size is not known before it is decoded
            reduction = reduction_for_boxes(config.image_size) if locations.whole else lambda width, height: 1.0
            reader = MediaReader(keep, reduction, counts, config.frames_per_clip, self.settings, folder, held.check)
            source, limits = self._find_source(record), ArchiveLimits.of(self.settings)
            reader.measure(source, limits)
            for name, media in iter_media(source, limits):
                held.check()
                images, skipped = counts.images, counts.skipped
                videos += isinstance(media, Member)
                pictures += not isinstance(media, Member)
                counts.mode = resolve_mode(config.mode, pictures, videos)
                if isinstance(media, Member):
                    reader.read_video(media, (record.source.name or name) if media.bare_video else name)
                else:
                    reader.read_picture(media, name)
                self.taker.metrics.pictures.labels("read").inc(counts.images - images)
                self.taker.metrics.pictures.labels("skipped").inc(counts.skipped - skipped)
                held.report(write_counts)
        if counts.mode == "clips":
            counts.clips, too_short = squares.arrange_clips()
            counts.drop_short_clips(too_short)
        self._check_enough(counts, videos)
        if not locations.whole:
            with atomic_write(files.found_boxes(job_id)) as file:
                file.write(write_csv(boxes).encode())
        counts.warnings = self._look_at_pictures(job_id, squares.clip_names, is_located=not locations.whole)
        counts.warnings += find_unused_boxes(locations, config.frames_per_clip)
        several = [replace_surrogates(name) for name in locations.with_several()]
        if several and counts.located is not None:
            taken = "the most confident is taken" if counts.mode == "clips" else "each is a picture to train on"
            note = f"of {len(several)} pictures with several boxes, {taken}"
            counts.located["note"] = "; ".join(filter(None, (counts.located["note"], note)))
        info = {
            "count": counts.images,
            "side": config.image_size,
            "mode": counts.mode,
            "align": "heading" if locations.is_aligned else "off",
            "clips": counts.clips,
            "skipped_count": counts.skipped,
            "skipped": counts.skipped_files,
            "names": [replace_surrogates(name) for name in squares.names],
            "sizes": squares.sizes,
            "warnings": [warning.model_dump(mode="json") for warning in counts.warnings],
            **({} if locations.whole else {"frames": squares.frames, "located": counts.located}),
            **({} if config.labels_fit == "exact" else {"orientations": squares.orientations}),
            **({"with_several": several} if several else {}),
        }
        write_json(files.pictures_info(job_id), info)
        return counts

    def _locate(self, record: JobRecord, held: HeldJob, config: PPLConfig) -> Locations:
        """Return where the thing is in each picture: by boxes that were sent, and by motion in those without one."""
        job_id, source, limits = record.job.id, self._find_source(record), ArchiveLimits.of(self.settings)
        boxes = self.taker.files.boxes(job_id)
        if config.locate == "off" and not boxes.exists():
            return Locations()
        file_of_boxes = parse_box_file(boxes.read_bytes()) if boxes.exists() else None
        folder, names = self.taker.files.create(job_id), list[str]()
        with tempfile.TemporaryFile(dir=folder) as file:
            finder = MotionFinder(file, is_required=config.locate == "motion", align=config.align)

            def keep(picture: Picture, name: str, clip: str) -> None:
                names.append(name)
                finder.keep(picture, name, clip)

            frames, check = config.frames_per_clip, held.check
            reader = MediaReader(
                keep, finder.reduction, FileCounts(), frames, self.settings, folder, check, motion.LONGER_SIDE
            )
            reader.measure(source, limits)
            for name, media in iter_media(source, limits):
                check()
                if isinstance(media, Member):
                    reader.read_video(media, (record.source.name or name) if media.bare_video else name)
                elif file_of_boxes:
                    names.append(name)
                elif finder.wants(name):
                    reader.read_picture(media, name)
            if file_of_boxes is None:
                return finder.locate()
            sent = Locations.of_file(file_of_boxes, names)
            if not (fills_frames(config.locate, file_of_boxes) and sent.needs_motion(config.align)):
                return sent
            for name, media in iter_media(source, limits):
                # the pictures, not read before it was known that some lack a box or an angle
                check()
                if not isinstance(media, Member) and finder.wants(name):
                    reader.read_picture(media, name)
            return finder.locate(sent)

    def _find_source(self, record: JobRecord) -> Path:
        if record.source.kind == "folder":
            return training_folder(self.settings.data_root, record.source.folder or "")
        archive = self.taker.files.archive(record.job.id)
        if not archive.exists():
            raise TrainingFailed("the uploaded archive was deleted from the server; send the job again")
        return archive

    def _check_labels(self, job_id: str, count: int) -> LabelledPictures | None:
        labelled = match_job_labels(self.taker.files, job_id)
        if labelled:
            left = int(training_rows(count, labelled, load_clips(self.taker.files, job_id)).sum())
            if left < self.settings.training_min_pictures:
                raise BadLabels(
                    f"{int(labelled.heldout.sum())} labelled pictures are held out, which leaves {left} to train on; "
                    f"at least {self.settings.training_min_pictures} are needed"
                )
        return labelled

    def _check_enough(self, counts: FileCounts, videos: int) -> None:
        least = self.settings.training_min_pictures
        if counts.images >= least:
            return
        if videos or counts.mode == "clips":
            found = f"{counts.images} frames of {counts.clips} clips"
        else:
            found = f"{counts.images} of {counts.images + counts.skipped} pictures"
        detail = f"{found} could be read; at least {least} are needed"
        reasons = "; ".join(f"{item['name']}: {item['reason']}" for item in counts.skipped_files[:3])
        raise TooFewPictures(f"{detail} ({reasons})" if reasons else detail)


def _begin(record: JobRecord) -> None:
    if record.job.status is JobStatus.VALIDATING:
        record.count_start()


def _reset_starts(record: JobRecord) -> None:
    record.starts = 0


def prepared_config(files: JobFiles, job: Job) -> PPLConfig:
    """Return the model's settings of a prepared job: ``align`` is no longer "auto"."""
    info = json.loads(files.pictures_info(job.id).read_text(encoding="utf-8"))
    config = parse_config(job.settings)
    return replace(config, align=info.get("align", config.align))


def load_clips(files: JobFiles, job_id: str) -> NDArray[np.int64] | None:
    """Return the number of each prepared frame's clip (N,); None for stills."""
    return np.load(files.clips(job_id), allow_pickle=False) if files.clips(job_id).exists() else None


def match_job_labels(files: JobFiles, job_id: str) -> LabelledPictures | None:
    """Return a prepared job's labels matched to its pictures; None if the job has no labels.

    They are matched once and stored: the held-out pictures stay the same if a later release continues the job. Raises
    BadLabels if the labels can't be read, match no picture, or leave nothing to fit or score.
    """
    stored = files.labelled(job_id)
    if stored.exists():
        return LabelledPictures.load(stored)
    if not files.labels(job_id).exists():
        return None
    info = json.loads(files.pictures_info(job_id).read_text(encoding="utf-8"))
    try:
        labels = read_labels(files.labels(job_id))
        clips = load_clips(files, job_id)
        more = {name: info[name] for name in ("orientations", "with_several") if name in info}
        if "frames" in info:
            more["frames"] = [Frame(*frame) for frame in info["frames"]]
        labelled = match_labels(labels, info["names"], info["sizes"], clips, NAMES_HINT, **more)
    except LabelsError as error:
        raise BadLabels(f"the labels can't be used: {error}") from error
    with atomic_write(stored) as file:
        labelled.save(file)
    return labelled
