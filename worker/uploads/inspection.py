"""Inspect a dataset: read every file as training would, count and measure them, and draw a contact sheet."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from PIL import Image

from model.scoring.label_files import read_labels
from model.scoring.labels import LabelsError
from service.contract.datasets.dataset import (
    DatasetRecord,
    Duplicate,
    Found,
    LabelsFound,
    SideCount,
    Sizes,
    SkippedFile,
)
from service.contract.datasets.store import DatasetFiles
from service.contract.errors import BadLabels, TooFewPictures
from service.contract.media.archives import ArchiveLimits, Member, detect_kind, iter_media, iter_members
from service.contract.media.pictures import FORMATS, Picture
from worker.settings import WorkerSettings

from .contact_sheet import COLUMNS, Cell, ClipCells, ContactSheet, StillCells, max_reduction
from .media_reader import MIN_CLIP_FRAMES, FileCounts, MediaReader, clip_of_picture, shorten_name
from .preparer import match_labels

_MAX_DUPLICATES = 20  # listed by name


class Inspection:
    """One pass over a dataset.

    Args:
        check: called for every file; its exceptions end the inspection.
    """

    def __init__(
        self, files: DatasetFiles, record: DatasetRecord, settings: WorkerSettings, check: Callable[[], None]
    ) -> None:
        self._archive = files.archive(record.id)
        self._labels = files.labels(record.id) if record.labels else None
        self._record = record
        self._limits = ArchiveLimits.of(settings)
        self._check = check
        self._counts = FileCounts(mode=record.mode)
        self._reader = MediaReader(
            self._keep, max_reduction, self._counts, COLUMNS, settings, files.folder(record.id), check
        )
        self._found = Found()
        self._formats: Counter[str] = Counter()
        self._sizes: list[tuple[int, int]] = []
        self._name_of_hash: dict[bytes, str] = {}  # the first picture with these bytes
        self._clips: Counter[str] = Counter()
        self._names: list[str] = []
        self._still_cells = StillCells(record.pictures + COLUMNS * record.videos)
        self._clip_cells = self._plan_clip_cells() if record.mode == "clips" else None
        self._number = 0  # of the picture or frame, including unreadable ones
        self._video: str | None = None  # the one being read
        self._frames = 0  # taken of it
        self._sheet = ContactSheet()

    def run(self, on_file: Callable[[], None]) -> Found:
        """Inspect every file, then the labels.

        Args:
            on_file: called after every file; `found` then returns the findings so far.

        Raises:
            TooFewPictures: nothing can be read.
            BadLabels: the labels can't be used.
            BadArchive and its subclasses, TrainingFailed: as when a job is prepared.
        """
        for name, media in iter_media(self._archive, self._limits, self._skip_other):
            self._check()
            if isinstance(media, Member):
                self._read_video(media, (self._record.file_name or name) if media.bare_video else name)
            else:
                before = self._counts.images
                self._reader.read_picture(media, name)
                self._number += 1
                if isinstance(media, bytes) and self._counts.images > before:
                    self._count_picture(media, name)
            on_file()
        if self._clip_cells:
            short = {clip: count for clip, count in self._clips.items() if count < MIN_CLIP_FRAMES}
            self._counts.drop_short_clips(short)
            self._found.clips = len(self._clips) - len(short)
        found = self.findings()
        if not found.pictures + found.videos:
            reasons = "; ".join(f"{item.name}: {item.reason}" for item in found.skipped_files[:3])
            raise TooFewPictures(f"nothing in the dataset can be read ({reasons}); send pictures or videos")
        found.labels = self._match_labels()
        return found

    def findings(self) -> Found:
        """Return the findings so far."""
        found = self._found
        found.formats = dict(self._formats.most_common())
        found.skipped = self._counts.skipped
        found.skipped_files = [SkippedFile(**item) for item in self._counts.skipped_files]
        found.sizes = _summarize_sizes(self._sizes)
        return found

    def save_sheet(self, path: Path) -> None:
        """Write the contact sheet; each clip has its own row."""
        self._sheet.save(path, close_gaps=self._clip_cells is None)

    def _read_video(self, video: Member, name: str) -> None:
        self._video, self._frames = name, 0
        self._reader.read_video(video, name)
        self._found.videos += self._frames > 0
        self._number += COLUMNS
        self._video, self._frames = None, 0

    def _keep(self, picture: Picture, name: str, clip: str) -> None:
        if not self._clip_cells:
            cell: Cell | None = self._still_cells.find(self._number + self._frames)
        elif self._video:
            cell = self._clip_cells.find_frame(self._video, self._frames)
        else:
            cell = self._clip_cells.find_picture(name)
        self._sheet.add(cell, picture.image)
        if not self._frames:  # all frames of a video have one size
            self._sizes.append(picture.size)
        self._frames += self._video is not None
        self._clips[clip] += 1

    def _count_picture(self, data: bytes, name: str) -> None:
        self._found.pictures += 1
        self._names.append(name)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            self._formats[image.format or "unknown"] += 1
        first = self._name_of_hash.setdefault(hashlib.sha256(data).digest()[:16], name)
        if first is not name:
            self._found.duplicates += 1
            if len(self._found.duplicate_files) < _MAX_DUPLICATES:
                self._found.duplicate_files.append(Duplicate(name=shorten_name(name), same_as=shorten_name(first)))

    def _skip_other(self, member: Member) -> None:
        self._counts.skip(member.name, "not named as a picture or a video")

    def _plan_clip_cells(self) -> ClipCells:
        pictures: dict[str, list[str]] = {}
        videos = []
        with closing(iter_members(self._archive, detect_kind(self._archive), self._limits)) as listing:
            for member in listing:
                if member.is_video:
                    videos.append((self._record.file_name or member.name) if member.bare_video else member.name)
                elif member.is_picture:
                    pictures.setdefault(clip_of_picture(member.name), []).append(member.name)
        return ClipCells(pictures, videos)

    def _match_labels(self) -> LabelsFound | None:
        """Match the labels; for frames, only count them, because their names and split depend on a job's settings."""
        if self._labels is None:
            return None
        try:
            labels = read_labels(self._labels)
            if self._record.mode == "clips" or self._record.videos:
                return LabelsFound(pictures=len(labels), keypoint_names=list(labels.keypoint_names))
            matched = match_labels(labels, self._names, self._sizes)
        except LabelsError as error:
            raise BadLabels(f"the labels can't be used: {error}") from error
        return LabelsFound(
            pictures=len(matched.pictures),
            held_out=int(matched.heldout.sum()),
            without_picture=matched.without_picture,
            keypoint_names=list(matched.keypoint_names),
        )


def _summarize_sizes(sizes: list[tuple[int, int]]) -> Sizes | None:
    if not sizes:
        return None
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    powers = Counter(min(size).bit_length() for size in sizes)
    return Sizes(
        smallest=ordered[0],
        median=ordered[len(ordered) // 2],
        largest=ordered[-1],
        by_shorter_side=[
            SideCount(from_px=1 << power - 1, below_px=1 << power, count=powers[power]) for power in sorted(powers)
        ],
    )
