"""What the client hands out: the API's own shapes, and what goes with them."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from .contract.datasets import CreatedDataset, Dataset, DatasetStatus
from .contract.records import Job, JobStatus
from .schemas import (
    Estimate,
    History,
    ImageEstimate,
    Keypoint,
    LandmarkPoint,
    Link,
    Memory,
    Prior,
    PriorEntry,
    Prototype,
    Snapshot,
    Timing,
    VersionEntry,
)
from .version_schemas import (
    AliasEntry,
    FittedLandmarks,
    KeypointNames,
    Landmarks,
    LandmarksEntry,
    LandmarksPage,
    LinkChange,
    PriorDiff,
)

__all__ = [
    "AliasEntry",
    "CreatedDataset",
    "Dataset",
    "DatasetStatus",
    "Estimate",
    "FittedLandmarks",
    "History",
    "ImageEstimate",
    "Job",
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
    "Prior",
    "PriorDiff",
    "PriorEntry",
    "Prototype",
    "Snapshot",
    "VersionEntry",
    "joined",
    "png_bytes",
]


def joined(parts: Sequence[Estimate]) -> Estimate:
    """Several answers as one: the pictures' numbers run through, the timings are sums."""
    if len(parts) == 1:
        return parts[0]
    images = [image for part in parts for image in part.images]
    timings = [part.timing_ms.model_dump() for part in parts]
    return parts[0].model_copy(
        update={
            "images": [image.model_copy(update={"index": index}) for index, image in enumerate(images)],
            "timing_ms": Timing(**{name: sum(timing[name] for timing in timings) for name in timings[0]}),
        }
    )


def png_bytes(data_url: str) -> bytes:
    """The PNG in a data URL, as ``overlay`` and ``link_map`` come."""
    return base64.b64decode(data_url.partition(",")[2])
