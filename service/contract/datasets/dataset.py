"""The shape of a dataset: an upload that is kept, what was found in it, and how far the looking is.

inspecting ──▶ ready, failed

What the gateway knows of an upload (:class:`DatasetRecord`) is written once. What a worker finds in it
(:class:`Findings`) is written by whichever process holds the dataset's lock, and read by all.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal

from pydantic import AwareDatetime, BaseModel, Field, field_serializer

from service.contract.jobs.job import JobDataset, JobError
from service.contract.media.archives import Mode


class DatasetStatus(StrEnum):
    """How far the looking into a dataset is."""

    INSPECTING = "inspecting"
    READY = "ready"
    FAILED = "failed"


class SideCount(BaseModel):
    """How many pictures have a shorter side from one length up to, and without, another."""

    from_px: int
    below_px: int
    count: int


class Sizes(BaseModel):
    """Widths and heights in pixels, EXIF orientation applied; of a video those of its frames, once."""

    smallest: tuple[int, int] = Field(description="the one of the fewest pixels")
    median: tuple[int, int] = Field(description="half have more pixels than this one")
    largest: tuple[int, int]
    by_shorter_side: list[SideCount] = Field(description="between powers of two, the shortest first, no empty ones")


class SkippedFile(BaseModel):
    """A file that training will leave out."""

    name: str
    reason: str


class Duplicate(BaseModel):
    """A picture that has the very bytes of one before it."""

    name: str
    same_as: str


class LabelsFound(BaseModel):
    """What labels came along."""

    pictures: int = Field(description="labelled pictures of the dataset; with videos, labelled pictures and frames")
    held_out: int | None = Field(
        default=None, description="of them left out of training; null where a job's settings decide"
    )
    without_picture: int | None = Field(
        default=None, description="labels of no picture; null where a job's settings decide"
    )
    keypoint_names: list[str]


class Found(BaseModel):
    """What training would read. While the dataset is inspected, what was found so far."""

    pictures: int = Field(default=0, description="that can be read")
    videos: int = Field(default=0, description="that can be read")
    clips: int = Field(
        default=0, description="with mode clips: videos, and folders of pictures, of two frames at least"
    )
    formats: dict[str, int] = Field(default={}, description="of the pictures, by name", examples=[{"JPEG": 12}])
    sizes: Sizes | None = None
    skipped: int = Field(default=0, description="files that are left out")
    skipped_files: list[SkippedFile] = Field(default=[], description="the first of these, with the reason")
    duplicates: int = Field(
        default=0, description="pictures with the very bytes of one before; training reads them all"
    )
    duplicate_files: list[Duplicate] = Field(default=[], description="the first of these")
    labels: LabelsFound | None = None


class Findings(BaseModel):
    """What a worker has written of a dataset.

    Attributes:
        starts: how often a worker began to look into it.
    """

    status: DatasetStatus = DatasetStatus.INSPECTING
    found: Found = Field(default_factory=Found)
    error: JobError | None = None
    starts: int = 0


class DatasetRecord(BaseModel):
    """What is known of a dataset from the moment it is there; it never changes.

    Attributes:
        name: given by its owner, or the file's.
        digest: "sha256:" and the hash of the archive.
        mode: what training takes it for, unless a job says otherwise.
        size_bytes: of the archive and the labels.
        pictures, videos: files named as such.
        file_name: the archive's, as its sender calls it; frames of a video sent by itself are named after it.
        labels: whether labels came along.
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
    created_at: AwareDatetime

    @field_serializer("created_at")
    def _utc(self, value: datetime) -> str:
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    @property
    def reference(self) -> JobDataset:
        """As a job and a version name it."""
        return JobDataset(id=self.id, digest=self.digest, name=self.name)


class Dataset(BaseModel):
    """A dataset as the API shows it."""

    id: str = Field(examples=["5b0f7c1d2a9e4f60b1c8d3e2"], description="the same for the same bytes, mode and labels")
    name: str | None
    status: DatasetStatus = Field(description="`inspecting` until a training worker has looked at every file")
    created_at: str
    digest: str = Field(description="`sha256:` and the hash of the archive")
    mode: Mode = Field(description="what training takes it for, unless a job says otherwise")
    size_bytes: int = Field(description="of the archive and the labels")
    files: int = Field(description="named as pictures or videos")
    labels: bool = Field(description="whether labels came along; jobs of the dataset use them")
    found: Found
    error: JobError | None = Field(default=None, description="of a failed one: why no job can be trained from it")
    contact_sheet: str | None = Field(
        default=None, description="address of a picture of what is in it, once it is ready"
    )

    @classmethod
    def of(cls, record: DatasetRecord, findings: Findings) -> Dataset:
        """From what the gateway and what a worker wrote."""
        told = record.model_dump(mode="json", include={"id", "name", "created_at", "digest", "mode", "size_bytes"})
        ready = findings.status is DatasetStatus.READY
        return cls(
            **told,
            status=findings.status,
            files=record.pictures + record.videos,
            labels=record.labels,
            found=findings.found,
            error=findings.error,
            contact_sheet=f"/datasets/{record.id}/contact-sheet" if ready else None,
        )


class CreatedDataset(Dataset):
    """A dataset, and whether it took room."""

    already_there: bool = Field(description="whether the same bytes had been sent before; then nothing was added")


class DatasetPage(BaseModel):
    """A part of the list of datasets, the newest first."""

    items: list[Dataset]
    next_cursor: str | None = None


def dataset_id(archive: str, labels: str | None, mode: Literal["stills", "clips"]) -> str:
    """The id of what has these SHA-256 hashes: 24 hex digits."""
    return hashlib.sha256(json.dumps([archive, labels, mode]).encode()).hexdigest()[:24]
