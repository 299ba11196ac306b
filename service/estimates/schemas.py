"""Schemas of estimates, answered at once or in the background."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, Field

from service.contract.jobs.job import JobError
from service.http.schemas import PictureProblem
from service.versions.schemas import Link

Problems = Annotated[
    list[PictureProblem] | None,
    Field(description="of a video, or in the background: pictures and frames without a pose, and why"),
]


class Keypoint(BaseModel):
    """A keypoint in pixels of the uploaded picture, its EXIF orientation applied."""

    id: int = Field(description="number of the keypoint, the same in every picture of a version")
    name: str | None = Field(None, description="present if the version's keypoints were named")
    x: float = Field(
        description="pixels from the left; integers are pixel centres, so a picture spans -0.5 to width-0.5"
    )
    y: float = Field(description="pixels from the top")
    score: float = Field(
        ge=0,
        le=1,
        description="share of the keypoint's attention that lies near it, from 0 to 1: how sure the model is of the "
        "place. Low where the part is hidden or could be in several places. Comparable between pictures of one "
        "version; not a probability.",
    )


class Point(BaseModel):
    """A point in pixels of the uploaded picture."""

    x: float
    y: float


class LandmarkPoint(Point):
    """A landmark in pixels of the uploaded picture."""

    name: str
    score: float = Field(
        0.0, ge=0, le=1, description="mean score of the keypoints, weighted by how much each moves the landmark"
    )


class Region(BaseModel):
    """The box, in pixels of the uploaded picture, that the model saw a square of; rotated about its centre if it has
    an angle."""

    x: float
    y: float
    width: float
    height: float
    confidence: float | None = Field(None, description="from 0 to 1, as stated by the box's source")
    angle: float | None = Field(
        None,
        description="with align=heading: the thing's heading in degrees clockwise from up: 0 is up, 90 is right",
    )
    angle_confidence: float | None = Field(
        None,
        description="from 0 to 1, if the angle was found: by motion, 0.8 means that head and tail are not swapped "
        "with a probability of 0.9; of a picture, how much more surely the thing is there than in other directions",
    )
    by: Literal["boxes", "motion"] | None = Field(
        None,
        description="of a video with boxes of some frames, where motion filled the others: whether this one was sent "
        "or found",
    )


class ImageEstimate(BaseModel):
    """The pose in one picture, or in one of its boxes."""

    index: int = Field(description="place of the picture in the request, from 0")
    frame: int | None = Field(None, description="of a video: number of the frame as shown, from 0")
    time_s: float | None = Field(None, description="of a video: when the frame is shown, in seconds from its start")
    box: int | None = Field(
        None,
        description="place of the box in the picture's list of boxes, if it has a list; of several animals in a video "
        "the number of the animal, the same in all frames",
    )
    width: int = Field(description="pixels, EXIF orientation applied")
    height: int
    region: Region | None = Field(
        None, description="where the thing was found, if it was located by motion or by a file of boxes"
    )
    keypoints: list[Keypoint]
    surprise: float | None = Field(
        None,
        ge=0,
        description="distance of the pose, before refinement, to the nearest pose of the memory: 99 of 100 training "
        "pictures stay below 1. Above 1 the picture may not show the category, or shows a pose never learned. Null for "
        "versions without a memory, and for those of releases that did not measure it",
    )
    present: float | None = Field(
        None,
        ge=0,
        le=1,
        description="probability that the thing is there at all, calibrated on the training pictures and on pictures "
        "made from them without it, half of each. Null for versions of releases that did not calibrate it",
    )
    links: list[Link] = Field(
        description="of the prior's skeleton, the strongest first, or all if included; the same for every picture"
    )
    codes: list[int] | None = Field(
        None, description="if included: index of the vector that the pose retrieves from each memory bank, unrefined"
    )
    landmarks: list[LandmarkPoint] | None = Field(
        None,
        description="if a set of landmarks was named: its points, mapped from the keypoints; empty if `present` is "
        "below 0.5",
    )
    smoothed: list[Point | None] | None = Field(
        None,
        description="of a smoothed video: the keypoints after the filter, beside the raw ones; null where a gap is too "
        "long. A frame in a filled gap has these alone, and no keypoints",
    )
    trajectory: list[list[Point]] | None = Field(
        None, description="if included: the pose after 0, 1, … refine_steps refinements"
    )
    reconstructions: list[str] | None = Field(
        None,
        description="if included: for each pose of the trajectory the data URL of a PNG, the model's square as it "
        "reconstructs it from the memory's pose nearest to that pose and from what the picture shows; refinement step "
        "n + 1 looks for the keypoints in the n-th",
    )
    link_map: str | None = Field(
        None, description="if included: data URL of a grey PNG of the picture's size, the links as the model drew them"
    )
    overlay: str | None = Field(
        None, description="if included: data URL of a PNG of the picture with the pose drawn on it"
    )


class Outlier(BaseModel):
    """A frame of a smoothed video in which keypoints jump."""

    index: int
    frame: int
    box: int | None = None
    keypoints: list[int] = Field(description="their ids")


Outliers = Annotated[
    list[Outlier] | None,
    Field(description="of a smoothed video: frames in which keypoints jump; the filter leaves these keypoints out"),
]


class Timing(BaseModel):
    """Milliseconds by stage. Frames of a video are processed concurrently: the stages may sum to more than the
    total."""

    decode: float = Field(description="decoding the pictures and fitting them to the model's square")
    queue: float = Field(description="waiting for a batch and for the worker, and the transfer there and back")
    model: float = Field(description="the model's work on the batches that the pictures were in")
    total: float = Field(description="from the request's first byte at the application to the answer")


class Estimate(BaseModel):
    """The poses of a request's pictures, in their order."""

    category: str
    version: str
    errors: Problems = None
    outliers: Outliers = None
    images: list[ImageEstimate]
    timing_ms: Timing


class CocoDataset(BaseModel):
    """The poses as a COCO keypoints data set (``format=coco``): https://cocodataset.org/#format-data."""

    info: dict[str, Any]
    images: list[dict[str, Any]] = Field(description="id, file_name, width, height")
    annotations: list[dict[str, Any]] = Field(
        description="image_id, category_id, keypoints (x, y, 2 for each), num_keypoints, bbox, area, score"
    )
    categories: list[dict[str, Any]] = Field(description="the one category: its keypoints' names, and the links")
    errors: Problems = None
    outliers: Outliers = None


class EstimateStatus(StrEnum):
    """Status of an estimate in the background."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether the status is final."""
        return self not in (EstimateStatus.QUEUED, EstimateStatus.RUNNING)


class EstimateProgress(BaseModel):
    """Progress of an estimate in the background."""

    done: int = Field(default=0, description="pictures, or frames, that are finished")
    failed: int = Field(default=0, description="those of them without a pose")
    total: int | None = Field(default=None, description="of all; null while a video's frames are not counted yet")


class BackgroundEstimate(BaseModel):
    """An estimate that was requested with `Prefer: respond-async`."""

    id: str = Field(examples=["019ac1b2c3d4e5f60718293a"])
    status: EstimateStatus
    category: str
    version: str = Field(description="that finds the poses; if none was named, the active one at the request")
    format: str
    created_at: AwareDatetime
    started_at: AwareDatetime | None = None
    finished_at: AwareDatetime | None = None
    progress: EstimateProgress = EstimateProgress()
    error: JobError | None = None
    created_by: str | None = Field(default=None, description="id of the API key that requested it")
    result_url: str | None = Field(default=None, description="address of the result, once it succeeded")
    raw_url: str | None = Field(
        default=None, description="address of the poses without smoothing, for formats that have no place for both"
    )
    overlay_url: str | None = Field(default=None, description="address of the video with its poses drawn (MP4)")


class EstimatePage(BaseModel):
    """A page of the list of estimates, the newest first."""

    items: list[BackgroundEstimate]
    next_cursor: str | None = None


class EstimateWithResult(BackgroundEstimate):
    """An estimate in the background with its result."""

    result: Estimate | None = Field(None, description="the poses, once it succeeded, for the format native")
    errors: list[PictureProblem] | None = Field(
        None,
        description="for formats other than native, once it succeeded: pictures and frames without a pose, and why; "
        "for the format native they are in the result",
    )
    outliers: Outliers = None
