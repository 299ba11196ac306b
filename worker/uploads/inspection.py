"""Inspect datasets: read every file as training would, count and measure them, and draw a contact sheet.

The training worker's third thread does it, and resumes inspections interrupted by a crash.
"""

from __future__ import annotations

import hashlib
import io
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import redis
from numpy.typing import NDArray
from PIL import Image
from redis.exceptions import LockError

from model.scoring.label_files import read_labels
from model.scoring.label_matching import match_labels
from model.scoring.labels import LabelsError
from service.contract.datasets.dataset import (
    DatasetRecord,
    DatasetStatus,
    Duplicate,
    Findings,
    Found,
    LabelsFound,
    SideCount,
    Sizes,
    SkippedFile,
)
from service.contract.datasets.store import DatasetFiles
from service.contract.errors import Abandoned, BadLabels, PPLError, StoreUnavailable, TooFewPictures, UnknownDataset
from service.contract.jobs.job import JobError
from service.contract.jobs.record import MAX_CRASHES_WITHOUT_PROGRESS
from service.contract.media.archives import ArchiveLimits, Member, detect_kind, is_stack, iter_media, iter_members
from service.contract.media.boxes import FoundBox
from service.contract.media.fitting import fit_square
from service.contract.media.locating import MotionFinder, clip_of_picture
from service.contract.media.motion import LONGER_SIDE
from service.contract.media.pictures import FORMATS, Picture
from service.contract.media.video_request import space_evenly
from service.contract.media.zip_names import HINT as NAMES_HINT
from service.contract.objects import Replaced
from worker.heartbeat import PeriodicThread
from worker.jobs import Stop, Stopping, explain_failure
from worker.redis_retries import OUTAGES
from worker.settings import WorkerSettings

from .contact_sheet import COLUMNS, ContactSheet, find_still_cell, max_reduction, plan_clip_cells
from .media_reader import MIN_CLIP_FRAMES, FileCounts, MediaReader, shorten_name
from .motion_search import FRAMES_PER_VIDEO, MotionSearch
from .placement import SIDE_PX, find_warnings, spread_rows

logger = logging.getLogger(__name__)

_MAX_DUPLICATES = 20  # listed by name
_MAX_FRAMES = 12 * COLUMNS  # that are named
_WRITE_EVERY_S = 2.0
_LEASE_S = 60.0


class Inspection:
    """One pass over a dataset; ``check`` is called for every file, and its exceptions end the inspection."""

    def __init__(
        self, files: DatasetFiles, record: DatasetRecord, settings: WorkerSettings, check: Callable[[], None]
    ) -> None:
        self._archive, self._labels = files.archive(record.id), files.labels(record.id)
        self._record = record
        self._limits = ArchiveLimits.of(settings)
        self._check = check
        self._counts = FileCounts(mode=record.mode)
        self._folder = files.folder(record.id)
        self._search: MotionSearch | None = None  # during the run, of a dataset without boxes
        self._boxes: dict[str, FoundBox] | None = None  # where motion is sure
        self._gathered: list[tuple[Picture, str, str]] = []  # frames of the video being read in which motion is sought
        reading = self._counts, COLUMNS, settings, self._folder, check
        self._reader = MediaReader(self._keep, _max_reduction, *reading)
        reading = self._counts, FRAMES_PER_VIDEO, settings, self._folder, check
        self._motion_reader = MediaReader(self._gather, _max_reduction, *reading, LONGER_SIDE)
        self._found = Found()
        self._formats: Counter[str] = Counter()
        self._sizes: list[tuple[int, int]] = []
        self._name_of_hash: dict[bytes, str] = {}  # the first picture with these bytes
        self._clips: Counter[str] = Counter()
        self._names: list[str] = []
        self._in_clips = record.mode == "clips"
        self._clip_rows, self._clip_cells = plan_clip_cells(*self._list_clips()) if self._in_clips else ({}, {})
        self._expected = max(1, record.pictures + COLUMNS * record.videos)  # pictures and frames
        self._number = 0  # of the picture or frame, including unreadable ones
        self._video: str | None = None  # the one being read
        self._frames = 0  # taken of it
        self._shows_frames = False  # whether the API shows single frames of it: not of a stack of pictures
        self._sheet = ContactSheet()
        # boxes are cut out by training only
        self._compared = set() if record.boxes else set(spread_rows(self._expected).tolist())
        self._copies: list[NDArray[np.uint8]] = []

    def run(self) -> Iterator[None]:
        """Inspect every file, then the labels; yield after every file. Raises the errors of `Preparer.prepare`."""
        with tempfile.TemporaryFile(dir=self._folder) as file:
            if not self._record.boxes:
                self._search = MotionSearch(file, self._record.pictures)
            yield from self._read_files()
            if self._search:
                self._found.motion, motion = self._search.finish(set(self._found.frames), self._check)
                self._boxes = motion.found() if motion.is_sure else None
        self._found.labels = self._match_labels()
        if self._boxes is None:
            self._found.warnings = find_warnings(self._copies, None, is_located=False)

    def _read_files(self) -> Iterator[None]:
        self._reader.measure(self._archive, self._limits)
        why = "not named as a picture or a video"
        for name, media in iter_media(self._archive, self._limits, lambda other: self._counts.skip(other.name, why)):
            self._check()
            if isinstance(media, Member):
                self._read_video(media, self._name_of_video(media))
            else:
                before = self._counts.images
                self._reader.read_picture(media, name)
                self._number += 1
                if isinstance(media, bytes) and self._counts.images > before:
                    self._count_picture(media, name)
            yield
        if self._in_clips:
            short = {clip: count for clip, count in self._clips.items() if count < MIN_CLIP_FRAMES}
            self._counts.drop_short_clips(short)
            self._found.clips = len(self._clips) - len(short)
        if not self._found.pictures + self._found.videos:
            reasons = "; ".join(f"{item['name']}: {item['reason']}" for item in self._counts.skipped_files[:3])
            raise TooFewPictures(f"nothing in the dataset can be read ({reasons}); send pictures or videos")

    def findings(self) -> Found:
        """Return the findings so far."""
        found = self._found
        found.formats = dict(self._formats.most_common())
        found.skipped = self._counts.skipped
        found.skipped_files = [SkippedFile(**item) for item in self._counts.skipped_files]
        found.sizes = _summarize_sizes(self._sizes)
        return found

    def save_sheet(self, path: Path) -> None:
        """Write the contact sheet with the boxes that motion found; each clip has its own row."""
        self._sheet.save(path, self._boxes, close_gaps=not self._in_clips)

    def _read_video(self, video: Member, name: str) -> None:
        self._video, self._frames, self._shows_frames = name, 0, video.is_video
        if self._search and self._search.takes(name):
            self._motion_reader.read_video(video, name)
            for index in space_evenly(COLUMNS, len(self._gathered)):
                self._keep(*self._gathered[index])
            self._gathered.clear()
        else:
            self._reader.read_video(video, name)
        self._found.videos += self._frames > 0
        self._number += COLUMNS
        self._video, self._frames = None, 0

    def _gather(self, picture: Picture, name: str, clip: str) -> None:
        assert self._search is not None
        self._gathered.append((self._search.add_frame(picture, name, clip), name, clip))

    def _keep(self, picture: Picture, name: str, clip: str) -> None:
        cell = self._clip_cells.get(name)
        if not self._in_clips:
            cell = find_still_cell(self._number + self._frames, self._expected)
        elif self._video in self._clip_rows and self._frames < COLUMNS:
            cell = self._clip_rows[self._video], self._frames
        is_drawn = self._sheet.add(cell, picture, name)
        if self._number + self._frames in self._compared:
            # the small copy of a frame is a picture of its own here
            whole = picture if self._video is None else Picture.of(picture.image)
            self._copies.append(fit_square(whole, SIDE_PX)[0])
        if self._search and self._video is None:
            self._search.add_picture(picture, name, clip, is_drawn=is_drawn)
        if not self._frames:  # all frames of a video have one size
            self._sizes.append(picture.size)
        if self._video is not None:
            self._frames += 1
            if self._shows_frames and len(self._found.frames) < _MAX_FRAMES:
                self._found.frames.append(name)
        self._clips[clip] += 1

    def _count_picture(self, data: bytes, name: str) -> None:
        found = self._found
        found.pictures += 1
        self._names.append(name)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            self._formats[image.format or "unknown"] += 1
        first = self._name_of_hash.setdefault(hashlib.sha256(data).digest()[:16], name)
        if first is not name:
            found.duplicates += 1
            if found.duplicates <= _MAX_DUPLICATES:
                found.duplicate_files.append(Duplicate(name=shorten_name(name), same_as=shorten_name(first)))

    def _name_of_video(self, member: Member) -> str:
        return (self._record.file_name or member.name) if member.bare_video else member.name

    def _list_clips(self) -> tuple[dict[str, list[str]], list[str]]:
        """Return the names of the pictures of each folder, and of the videos."""
        pictures: dict[str, list[str]] = {}
        videos = []
        with closing(iter_members(self._archive, detect_kind(self._archive), self._limits)) as listing:
            for member in listing:
                if member.is_video or is_stack(member, self._limits):
                    videos.append(self._name_of_video(member))
                elif member.is_picture:
                    pictures.setdefault(clip_of_picture(member.name), []).append(member.name)
        return pictures, videos

    def _match_labels(self) -> LabelsFound | None:
        """Match the labels; for frames, only count them, because their names and split depend on a job's settings."""
        if not self._record.labels:
            return None
        try:
            labels = read_labels(self._labels)
            if self._record.mode == "clips" or self._record.videos:
                return LabelsFound(pictures=len(labels), keypoint_names=list(labels.keypoint_names))
            matched = match_labels(labels, self._names, self._sizes, hint=NAMES_HINT)
        except LabelsError as error:
            raise BadLabels(f"the labels can't be used: {error}") from error
        return LabelsFound(
            pictures=len(matched.pictures),
            held_out=int(matched.heldout.sum()),
            without_picture=matched.without_picture,
            keypoint_names=list(matched.keypoint_names),
        )


def _max_reduction(width: int, height: int) -> float:
    return min(max_reduction(width, height), MotionFinder.reduction(width, height))


def _summarize_sizes(sizes: list[tuple[int, int]]) -> Sizes | None:
    if not sizes:
        return None
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    powers = Counter(min(size).bit_length() for size in sizes)
    sides = [SideCount(from_px=1 << power - 1, below_px=1 << power, count=powers[power]) for power in sorted(powers)]
    middle = ordered[len(ordered) // 2]
    return Sizes(smallest=ordered[0], median=middle, largest=ordered[-1], by_shorter_side=sides)


class InspectionLease:
    """An expiring lock on a dataset in Redis, as workers of several machines may inspect it."""

    def __init__(self, client: redis.Redis, dataset_id: str) -> None:
        self._lock = client.lock(f"ppl:inspecting:{dataset_id}", timeout=_LEASE_S, blocking=False, thread_local=False)
        self._renewed_at = 0.0

    def acquire(self) -> bool:
        """Take the lease unless another process has it."""
        self._renewed_at = time.monotonic()
        return bool(self._lock.acquire())

    def renew(self) -> None:
        """Renew the lease when a quarter of its TTL has passed. Raises Stopping if another process holds it."""
        if time.monotonic() - self._renewed_at < _LEASE_S / 4:
            return
        try:
            self._lock.reacquire()
        except LockError as error:
            raise Stopping from error
        self._renewed_at = time.monotonic()

    def release(self) -> None:
        """Release the lease if it is still held."""
        with suppress(LockError, *OUTAGES):
            self._lock.release()


class Inspector(PeriodicThread):
    """A thread that inspects datasets while a job trains. Its whole state is in the datasets' files.

    Args:
        lease: makes the lease of a dataset; None where all workers share the data root, whose file locks suffice.
    """

    def __init__(
        self,
        files: DatasetFiles,
        settings: WorkerSettings,
        stop: Stop,
        lease: Callable[[str], InspectionLease] | None = None,
    ) -> None:
        super().__init__("inspector", every_s=0.5)
        self._files, self._settings, self._stop = files, settings, stop
        self._make_lease = lease if settings.store_url else None
        self._lease: InspectionLease | None = None

    def run_once(self) -> None:
        """Inspect every waiting dataset."""
        try:
            self._files.poll()
        except StoreUnavailable:  # which is logged where it is raised
            return
        for dataset_id in self._files.list_waiting():
            if self._is_stopping():
                return
            self.inspect(dataset_id)

    def inspect(self, dataset_id: str) -> None:
        """Inspect a dataset unless another process does."""
        lease = self._make_lease(dataset_id) if self._make_lease else None
        if lease and not lease.acquire():
            return
        self._lease = lease
        try:
            self._files.complete(dataset_id)
            with self._files.lock_inspection(dataset_id) as mine:
                findings = self._files.findings(dataset_id) if mine else None
                if findings and findings.status is DatasetStatus.INSPECTING:
                    self._inspect(dataset_id, findings)
        except (Replaced, StoreUnavailable) as error:
            logger.warning("inspection postponed: dataset=%s error=%s", dataset_id, type(error).__name__)
        except Stopping:
            logger.info("inspection postponed: dataset=%s", dataset_id)
        except UnknownDataset:
            logger.info("dataset=%s: deleted", dataset_id)
        finally:
            self._lease = None
            if lease:
                lease.release()

    def _inspect(self, dataset_id: str, findings: Findings) -> None:
        if findings.starts > MAX_CRASHES_WITHOUT_PROGRESS:
            crashes = f"the worker crashed {findings.starts} times while it inspected the dataset"
            self._fail(dataset_id, findings, Abandoned(f"{crashes}; often the memory ran out, see the worker's log"))
            return
        findings.starts += 1
        self._files.write_findings(dataset_id, findings)
        written_at, inspection = time.monotonic(), None
        try:
            inspection = Inspection(self._files, self._files.record(dataset_id), self._settings, self._check)
            for _ in inspection.run():
                if time.monotonic() - written_at > _WRITE_EVERY_S:
                    findings.found = inspection.findings()
                    self._files.write_findings(dataset_id, findings)
                    written_at = time.monotonic()
            inspection.save_sheet(self._files.sheet(dataset_id))
        except Stopping:
            findings.starts = 0  # an orderly stop is not a crash
            self._files.write_findings(dataset_id, findings)
            raise
        except (UnknownDataset, Replaced, StoreUnavailable):
            raise
        except Exception as error:  # the owner must see any failure
            self._files.record(dataset_id)  # raises UnknownDataset if the dataset was deleted meanwhile
            if not isinstance(error, PPLError):
                logger.exception("dataset=%s: inspection failed", dataset_id)
            if inspection is not None:
                findings.found = inspection.findings()
            self._fail(dataset_id, findings, explain_failure(error, "dataset"))
            return
        found = findings.found = inspection.findings()
        findings.status = DatasetStatus.READY
        self._files.write_findings(dataset_id, findings)
        counts = (found.pictures, found.videos, found.skipped)
        logger.info("dataset=%s: ready, pictures=%d videos=%d skipped=%d", dataset_id, *counts)

    def _fail(self, dataset_id: str, findings: Findings, error: PPLError) -> None:
        logger.warning("dataset=%s: failed: %s (%s)", dataset_id, error.detail, error.code)
        findings.status, findings.error = DatasetStatus.FAILED, JobError(**error.to_dict())
        self._files.write_findings(dataset_id, findings)

    def _is_stopping(self) -> bool:
        return self._stop.requested or self._done.is_set()

    def _check(self) -> None:
        if self._is_stopping():
            raise Stopping
        if self._lease:
            self._lease.renew()
