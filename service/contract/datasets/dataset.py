"""Datasets: kept uploads and the findings of their inspection.

inspecting ──▶ ready, failed

The gateway writes :class:`DatasetRecord` once. The worker that holds the dataset's lock writes :class:`Findings`.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal

from pydantic import AwareDatetime, BaseModel, Field, field_serializer

from service.contract.jobs.job import JobDataset, JobError
from service.contract.jobs.warnings import PictureWarning
from service.contract.media import Mode


class DatasetStatus(StrEnum):
    """The status of a dataset's inspection."""

    INSPECTING = "inspecting"
    READY = "ready"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether the inspection has ended."""
        return self is not DatasetStatus.INSPECTING


class SideCount(BaseModel):
    """The number of pictures whose shorter side is in [from_px, below_px)."""

    from_px: int
    below_px: int
    count: int


class Sizes(BaseModel):
    """Widths and heights in pixels, EXIF orientation applied; a video counts once, with the size of its frames."""

    smallest: tuple[int, int] = Field(description="fewest pixels")
    median: tuple[int, int] = Field(description="median number of pixels")
    largest: tuple[int, int]
    by_shorter_side: list[SideCount] = Field(description="between powers of two, the shortest first, no empty ones")


class SkippedFile(BaseModel):
    """A file that training skips."""

    name: str
    reason: str


class Duplicate(BaseModel):
    """A picture with the same bytes as an earlier one."""

    name: str
    same_as: str


class LabelsFound(BaseModel):
    """The labels of a dataset."""

    pictures: int = Field(description="labelled pictures of the dataset; with videos, labelled pictures and frames")
    held_out: int | None = Field(
        default=None, description="of them left out of training; null where a job's settings decide"
    )
    without_picture: int | None = Field(
        default=None, description="labels of no picture; null where a job's settings decide"
    )
    keypoint_names: list[str]


class MotionBox(BaseModel):
    """Where the thing is in a frame or picture: a row of a CSV of boxes."""

    image: str = Field(examples=["walk.mp4#000142"])
    x: float = Field(description="of the left edge, in pixels of the stored picture, its EXIF orientation applied")
    y: float = Field(description="of the upper edge")
    width: float
    height: float
    confidence: float | None = Field(default=None, ge=0, le=1)
    angle: float | None = Field(default=None, description="its heading in degrees clockwise from up, if known")
    angle_confidence: float | None = Field(default=None, ge=0, le=1)


class MotionFound(BaseModel):
    """Boxes of the thing that moves before a fixed camera, found as ``locate=auto`` does, but from fewer frames.

    The first dozen videos and folders of pictures are looked at: up to 40 frames of each video, spread over it, and
    some 200 pictures, spread over the dataset.
    """

    sure: bool = Field(
        description="whether the cameras seem fixed, and one small thing moves: a training then crops to it by itself"
    )
    clips: int = Field(description="videos and folders of pictures looked at")
    frames: int = Field(description="frames and pictures looked at")
    found: int = Field(default=0, description="of these with a box; 0 if it is not sure")
    side_px: float | None = Field(default=None, description="usual side of the boxes; null if it is not sure")
    from_above: bool | None = Field(
        default=None,
        description="whether the thing seems to be seen from above: a training with ``align=auto`` then rotates "
        "pictures so that it faces up; null if it is not sure where the thing is",
    )
    note: str | None = Field(default=None, description="why it is not sure, for the first clips of which it is not")
    boxes: list[MotionBox] = Field(
        default=[],
        description="of `frames` of the dataset and of the pictures looked at, those in which it was found",
    )


class Found(BaseModel):
    """The files that training would read; during the inspection, those found so far."""

    pictures: int = Field(default=0, description="that can be read")
    videos: int = Field(default=0, description="that can be read")
    clips: int = Field(
        default=0, description="with mode clips: videos, and folders of pictures, of two frames at least"
    )
    formats: dict[str, int] = Field(default={}, description="of the pictures, by name", examples=[{"JPEG": 12}])
    sizes: Sizes | None = None
    skipped: int = Field(default=0, description="files that training skips")
    skipped_files: list[SkippedFile] = Field(default=[], description="the first of these, with the reason")
    duplicates: int = Field(
        default=0, description="pictures with the same bytes as an earlier one; training reads them all"
    )
    duplicate_files: list[Duplicate] = Field(default=[], description="the first of these")
    labels: LabelsFound | None = None
    frames: list[str] = Field(
        default=[],
        description="names of frames spread over each video, of the first dozen videos; for `GET /datasets/{id}/frame`",
        examples=[["walk.mp4#000000", "walk.mp4#000142"]],
    )
    motion: MotionFound | None = Field(
        default=None, description="null before the inspection ends, and of a dataset that came with boxes"
    )
    warnings: list[PictureWarning] = Field(
        default=[],
        description="what seems wrong with the pictures as they are, without boxes; nothing where motion is sure",
    )


class Findings(BaseModel):
    """The result of a dataset's inspection by a worker.

    Attributes:
        starts: number of inspections started.
    """

    status: DatasetStatus = DatasetStatus.INSPECTING
    found: Found = Field(default_factory=Found)
    error: JobError | None = None
    starts: int = 0


class DatasetRecord(BaseModel):
    """The immutable facts of a dataset, known from the upload.

    Attributes:
        name: given by its owner, or the file's.
        digest: "sha256:" and the hash of the archive.
        mode: how training uses it unless a job sets another mode.
        size_bytes: size of the archive and the labels.
        pictures, videos: number of files with such suffixes.
        file_name: the upload's file name; frames of an uploaded video are named after it.
        labels, boxes: whether it has these.
    """

    id: str
    name: str | None = None
    digest: str
    mode: Mode
    size_bytes: int
    pictures: int
    videos: int
    file_name: str | None = None
    labels: bool = False
    boxes: bool = False
    created_at: AwareDatetime

    @field_serializer("created_at")
    def _utc(self, value: datetime) -> str:
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    @property
    def reference(self) -> JobDataset:
        """The reference that jobs and versions store."""
        return JobDataset(id=self.id, digest=self.digest, name=self.name)


class Dataset(BaseModel):
    """A dataset as the API shows it."""

    id: str = Field(
        examples=["5b0f7c1d2a9e4f60b1c8d3e2"], description="the same for the same bytes, mode, labels and boxes"
    )
    name: str | None
    status: DatasetStatus = Field(description="`inspecting` until a training worker has looked at every file")
    created_at: str
    digest: str = Field(description="`sha256:` and the hash of the archive")
    mode: Mode = Field(description="how training uses it unless a job sets another mode")
    size_bytes: int = Field(description="of the archive and the labels")
    files: int = Field(description="files with the suffix of a picture or video")
    labels: bool = Field(description="whether it has labels; jobs of the dataset use them")
    boxes: bool = Field(default=False, description="whether it has boxes; jobs of the dataset use them")
    found: Found
    error: JobError | None = Field(default=None, description="why its inspection failed")
    contact_sheet: str | None = Field(default=None, description="path of an overview picture, once it is ready")
    step_s: float | None = Field(
        default=None,
        description="approximate seconds that a step of a training takes, by the last training here with default "
        "settings; null before there was one, in lists, and while Redis does not answer. `progress.eta_s` of a job "
        "is the time left with its own settings",
    )

    @classmethod
    def of(cls, record: DatasetRecord, findings: Findings) -> Dataset:
        """Combine the record and the findings."""
        facts = record.model_dump(mode="json", include={"id", "name", "created_at", "digest", "mode", "size_bytes"})
        ready = findings.status is DatasetStatus.READY
        return cls(
            **facts,
            status=findings.status,
            files=record.pictures + record.videos,
            labels=record.labels,
            boxes=record.boxes,
            found=findings.found,
            error=findings.error,
            contact_sheet=f"/datasets/{record.id}/contact-sheet" if ready else None,
        )


class CreatedDataset(Dataset):
    """A dataset, and whether it existed before."""

    already_there: bool = Field(description="whether the same bytes were uploaded before; then nothing was added")


class DatasetPicture(BaseModel):
    """A file of a dataset whose suffix is that of a picture."""

    number: int = Field(description="its position among the dataset's pictures, from 0")
    name: str = Field(description="its path in the upload, as boxes and labels name it")


class DatasetPicturePage(BaseModel):
    """A page of the pictures of a dataset, in the upload's order."""

    items: list[DatasetPicture]
    next_cursor: str | None = None


class DatasetPage(BaseModel):
    """A page of the list of datasets, the newest first."""

    items: list[Dataset]
    next_cursor: str | None = None


def dataset_id(archive: str, labels: str | None, mode: Literal["stills", "clips"], boxes: str | None = None) -> str:
    """Return the id of a dataset, 24 hex digits, from the SHA-256 of its files and its mode."""
    parts = [archive, labels, mode, *([boxes] if boxes else [])]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
