"""Types that the client returns: the API's schemas and two for its JSON lines."""

from __future__ import annotations

import base64

from pydantic import BaseModel, Field

from service.contract.datasets.dataset import CreatedDataset as CreatedDataset
from service.contract.datasets.dataset import Dataset as Dataset
from service.contract.datasets.dataset import DatasetPicture as DatasetPicture
from service.contract.datasets.dataset import DatasetStatus as DatasetStatus
from service.contract.datasets.dataset import MotionFound as MotionFound
from service.contract.jobs.job import Checkpoint as Checkpoint
from service.contract.jobs.job import Job as Job
from service.contract.jobs.job import JobStatus as JobStatus
from service.contract.jobs.progress import EventKind as EventKind
from service.contract.jobs.progress import JobEvent as JobEvent
from service.contract.jobs.warnings import PictureWarning as PictureWarning
from service.contract.versions.quality import Quality as Quality
from service.estimates.schemas import BackgroundEstimate as BackgroundEstimate
from service.estimates.schemas import Estimate as Estimate
from service.estimates.schemas import EstimateStatus as EstimateStatus
from service.estimates.schemas import EstimateWithResult as EstimateWithResult
from service.estimates.schemas import ImageEstimate as ImageEstimate
from service.estimates.schemas import Keypoint as Keypoint
from service.estimates.schemas import LandmarkPoint as LandmarkPoint
from service.estimates.schemas import Timing as Timing
from service.http.schemas import Problem as Problem
from service.http.schemas import Readiness as Readiness
from service.versions.schemas import AliasEntry as AliasEntry
from service.versions.schemas import FittedLandmarks as FittedLandmarks
from service.versions.schemas import History as History
from service.versions.schemas import KeypointNames as KeypointNames
from service.versions.schemas import Landmarks as Landmarks
from service.versions.schemas import LandmarksEntry as LandmarksEntry
from service.versions.schemas import Link as Link
from service.versions.schemas import LinkChange as LinkChange
from service.versions.schemas import Memory as Memory
from service.versions.schemas import Prior as Prior
from service.versions.schemas import PriorDiff as PriorDiff
from service.versions.schemas import PriorEntry as PriorEntry
from service.versions.schemas import Prototype as Prototype
from service.versions.schemas import Snapshot as Snapshot
from service.versions.schemas import VersionEntry as VersionEntry


class PoseLine(ImageEstimate):
    """A pose in a JSON line; without links, which are the same for all poses of a version."""

    links: list[Link] = Field(default_factory=list)


class FailedPicture(BaseModel):
    """A picture of a request that failed."""

    index: int
    error: Problem


def png_bytes(data_url: str) -> bytes:
    """Decode a data URL, the form of ``overlay`` and ``link_map``."""
    return base64.b64decode(data_url.partition(",")[2])
