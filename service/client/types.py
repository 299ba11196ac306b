"""What the client hands out: the API's own shapes, and what goes with them."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from pydantic import BaseModel, Field

from service.contract.datasets.dataset import CreatedDataset, Dataset, DatasetStatus
from service.contract.jobs.events import EventKind, JobEvent
from service.contract.jobs.job import Checkpoint, Job, JobStatus
from service.estimates.background.store import BackgroundEstimate, EstimateStatus
from service.http.schemas import Problem, Readiness
from service.schemas import (
    Estimate,
    EstimateWithResult,
    ImageEstimate,
    Keypoint,
    LandmarkPoint,
    Timing,
)
from service.versions.schemas import (
    AliasEntry,
    FittedLandmarks,
    History,
    KeypointNames,
    Landmarks,
    LandmarksEntry,
    LandmarksPage,
    Link,
    LinkChange,
    Memory,
    Prior,
    PriorDiff,
    PriorEntry,
    Prototype,
    Snapshot,
    VersionEntry,
)

__all__ = [
    "AliasEntry",
    "BackgroundEstimate",
    "Checkpoint",
    "CreatedDataset",
    "Dataset",
    "DatasetStatus",
    "Estimate",
    "EstimateStatus",
    "EstimateWithResult",
    "EventKind",
    "FailedPicture",
    "FittedLandmarks",
    "History",
    "ImageEstimate",
    "Job",
    "JobEvent",
    "JobStatus",
    "Keypoint",
    "KeypointNames",
    "LandmarkPoint",
    "Landmarks",
    "LandmarksEntry",
    "LandmarksPage",
    "Link",
    "LinkChange",
    "Memory",
    "PoseLine",
    "Prior",
    "PriorDiff",
    "PriorEntry",
    "Problem",
    "Prototype",
    "Readiness",
    "Snapshot",
    "VersionEntry",
    "joined",
    "png_bytes",
]


class PoseLine(ImageEstimate):
    """A pose as it comes line by line, without the links, which all poses of a version share."""

    links: list[Link] = Field(default_factory=list)


class FailedPicture(BaseModel):
    """A picture among others for which there is no pose."""

    index: int
    error: Problem


def joined(parts: Sequence[tuple[int, Estimate]]) -> Estimate:
    """Several answers as one: the pictures' numbers run through, the timings are sums.

    Args:
        parts: each with the number of its first picture.
    """
    if len(parts) == 1:
        return parts[0][1]
    images = [image.model_copy(update={"index": image.index + first}) for first, part in parts for image in part.images]
    timings = [part.timing_ms.model_dump() for _, part in parts]
    return parts[0][1].model_copy(
        update={
            "images": images,
            "timing_ms": Timing(**{name: sum(timing[name] for timing in timings) for name in timings[0]}),
        }
    )


def png_bytes(data_url: str) -> bytes:
    """The PNG in a data URL, as ``overlay`` and ``link_map`` come."""
    return base64.b64decode(data_url.partition(",")[2])
