"""What is in a dataset: every file read as training would read it, counted, measured, and some of it shown."""

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
from service.contract.media.archive_members import detect_kind, iter_members
from service.contract.media.archives import ArchiveLimits, Member, iter_media
from service.contract.media.pictures import FORMATS, Picture
from worker.settings import WorkerSettings

from .contact_sheet import COLUMNS, Cell, ClipCells, ContactSheet, StillCells, reducible
from .file_counts import Tally, shown
from .label_matching import match_labels
from .media_reader import MediaReader
from .square_files import LEAST_FRAMES, clip_of_picture

_NAMED = 20  # duplicates named


class Inspection:
    """One look through a dataset.

    Args:
        check: called for every file; what it raises ends the look.
    """

    def __init__(
        self, files: DatasetFiles, record: DatasetRecord, settings: WorkerSettings, check: Callable[[], None]
    ) -> None:
        self._archive = files.archive(record.id)
        self._labels = files.labels(record.id) if record.labels else None
        self._record = record
        self._limits = ArchiveLimits.of(settings)
        self._check = check
        self._tally = Tally(mode=record.mode)
        self._reader = MediaReader(
            self._keep, reducible, self._tally, COLUMNS, settings, files.folder(record.id), check
        )
        self._found = Found()
        self._formats: Counter[str] = Counter()
        self._sizes: list[tuple[int, int]] = []
        self._first: dict[bytes, str] = {}  # name of the first picture of each hash
        self._clips: Counter[str] = Counter()
        self._names: list[str] = []
        self._stills = StillCells(record.pictures + COLUMNS * record.videos)
        self._by_clip = self._cells_of_clips() if record.mode == "clips" else None
        self._number = 0  # of the picture or frame, those that can't be read included
        self._video: str | None = None  # that is being read
        self._frames = 0  # taken of it
        self._sheet = ContactSheet()

    def run(self, tell: Callable[[], None]) -> Found:
        """Look at everything.

        Args:
            tell: called after every file; :meth:`found` says what was found by then.

        Raises:
            TooFewPictures: nothing can be read.
            BadLabels: the labels can't be used.
            BadArchive and its kinds, TrainingFailed: as a training's preparation does.
        """
        for name, media in iter_media(self._archive, self._limits, self._pass_over):
            self._check()
            if isinstance(media, Member):
                self._take_video(media, (self._record.file_name or name) if media.bare_video else name)
            else:
                before = self._tally.images
                self._reader.take_picture(media, name)
                self._number += 1
                if isinstance(media, bytes) and self._tally.images > before:
                    self._count(media, name)
            tell()
        self._leave_out_clips()
        found = self.found()
        if not found.pictures + found.videos:
            reasons = "; ".join(f"{item.name}: {item.reason}" for item in found.skipped_files[:3])
            raise TooFewPictures(f"nothing in the dataset can be read ({reasons})")
        found.labels = self._match_labels()
        return found

    def found(self) -> Found:
        """What was found so far."""
        found = self._found
        found.formats = dict(self._formats.most_common())
        found.skipped = self._tally.skipped
        found.skipped_files = [SkippedFile(**item) for item in self._tally.named]
        found.sizes = sizes_of(self._sizes)
        return found

    def save_sheet(self, path: Path) -> None:
        """Write pictures of what was seen on one page; with clips each has a row."""
        self._sheet.save(path, close_up=self._by_clip is None)

    def _take_video(self, video: Member, name: str) -> None:
        self._video, self._frames = name, 0
        self._reader.take_video(video, name)
        self._found.videos += self._frames > 0
        self._number += COLUMNS
        self._video, self._frames = None, 0

    def _keep(self, picture: Picture, name: str, clip: str) -> None:
        if not self._by_clip:
            cell: Cell | None = self._stills.cell(self._number + self._frames)
        elif self._video:
            cell = self._by_clip.of_frame(self._video, self._frames)
        else:
            cell = self._by_clip.of_picture(name)
        self._sheet.offer(cell, picture.image)
        if not self._frames:
            self._sizes.append(picture.size)
        self._frames += self._video is not None
        self._clips[clip] += 1

    def _count(self, data: bytes, name: str) -> None:
        self._found.pictures += 1
        self._names.append(name)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # which was decoded, so its header can be read
            self._formats[image.format or "unknown"] += 1
        first = self._first.setdefault(hashlib.sha256(data).digest()[:16], name)
        if first is not name:
            self._found.duplicates += 1
            if len(self._found.duplicate_files) < _NAMED:
                self._found.duplicate_files.append(Duplicate(name=shown(name), same_as=shown(first)))

    def _pass_over(self, member: Member) -> None:
        self._tally.skip(member.name, "not named as a picture or a video")

    def _leave_out_clips(self) -> None:
        if self._by_clip is None:
            return
        short = {clip: count for clip, count in self._clips.items() if count < LEAST_FRAMES}
        self._tally.leave_out(short)
        self._found.clips = len(self._clips) - len(short)

    def _cells_of_clips(self) -> ClipCells:
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
        """What the labels are worth; which frames they meet, and which clips are held out, a job's settings decide."""
        if self._labels is None:
            return None
        try:
            labels = read_labels(self._labels)
            if self._record.mode == "clips" or self._record.videos:
                return LabelsFound(pictures=len(labels), keypoint_names=list(labels.keypoint_names))
            found = match_labels(labels, self._names, self._sizes)
        except LabelsError as error:
            raise BadLabels(f"the labels can't be used: {error}") from error
        return LabelsFound(
            pictures=len(found.pictures),
            held_out=int(found.heldout.sum()),
            without_picture=found.without_picture,
            keypoint_names=list(found.keypoint_names),
        )


def sizes_of(sizes: list[tuple[int, int]]) -> Sizes | None:
    """How large some pictures are; None where there are none."""
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
