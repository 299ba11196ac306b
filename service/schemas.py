"""The shapes of the API's answers, for its documentation. Those of jobs stand in ``contract.records``."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from service.estimates.background.store import BackgroundEstimate
from service.http.schemas import PictureProblem
from service.versions.schemas import Link


class Keypoint(BaseModel):
    """A keypoint on the picture as uploaded, its EXIF orientation applied."""

    id: int = Field(description="number of the keypoint, the same in every picture of a version")
    name: str | None = Field(None, description="where the keypoints of the version were named")
    x: float = Field(
        description="pixels from the left; integers are pixel centres, so a picture spans -0.5 to width-0.5"
    )
    y: float = Field(description="pixels from the top")
    score: float = Field(
        ge=0,
        le=1,
        description="share of the keypoint's attention that lies near it, from 0 to 1: how sure the model is of the "
        "place. Low where the part is hidden or could be in several places. Comparable between pictures of one "
        "version; no probability.",
    )


class Point(BaseModel):
    """A place on the picture as uploaded, in pixels as a keypoint's."""

    x: float
    y: float


class LandmarkPoint(Point):
    """A landmark of a user's own, on the picture as uploaded."""

    name: str


class ImageEstimate(BaseModel):
    """The pose in one picture, or in one of its boxes."""

    index: int = Field(description="place of the picture in the request, from 0")
    frame: int | None = Field(None, description="of a video: number of the frame as shown, from 0")
    time_s: float | None = Field(None, description="of a video: when the frame is shown, in seconds from its start")
    box: int | None = Field(None, description="place of the box in the picture's list of them, where it has one")
    width: int = Field(description="pixels, EXIF orientation applied")
    height: int
    keypoints: list[Keypoint]
    surprise: float | None = Field(
        None,
        ge=0,
        description="how far the pose lies from what the memory of poses makes of it: 99 in 100 training pictures "
        "stay below 1. Above it the picture may not show the category, or in a pose never learned. Of the pose "
        "before refinement. Null for versions without a memory, and for those of releases that did not measure it",
    )
    links: list[Link] = Field(description="of the prior, the strongest first; the same for every picture")
    codes: list[int] | None = Field(
        None, description="where asked for: which vector of each memory bank the pose retrieves, before refinement"
    )
    landmarks: list[LandmarkPoint] | None = Field(
        None, description="where a set of landmarks was named: its points, told from the keypoints"
    )
    trajectory: list[list[Point]] | None = Field(
        None, description="where asked for: the pose after 0, 1, … refine_steps refinements"
    )
    link_map: str | None = Field(
        None,
        description="where asked for: data URL of a grey PNG of the picture's size, the links as the model drew them",
    )
    overlay: str | None = Field(
        None, description="where asked for: data URL of a PNG of the picture with the pose drawn on it"
    )


class Timing(BaseModel):
    """Where the time went, in milliseconds. Frames of a video wait, and are worked on, beside each other: their sum
    may be more than the total."""

    decode: float = Field(description="decoding the pictures and fitting them to the model's square")
    queue: float = Field(description="waiting for a batch and for the worker, and the way there and back")
    model: float = Field(description="the model's work on the batches that the pictures were in")
    total: float = Field(description="from the request's first byte at the application to the answer")


class Estimate(BaseModel):
    """The poses of a request's pictures, in their order."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "category": "dog",
                    "version": "20261123T064501-1f3a9c",
                    "images": [
                        {
                            "index": 0,
                            "width": 640,
                            "height": 480,
                            "keypoints": [
                                {"id": 0, "x": 412.204, "y": 131.87, "score": 0.9712},
                                {"id": 1, "x": 371.55, "y": 168.019, "score": 0.9544},
                            ],
                            "surprise": 0.4127,
                            "links": [{"i": 0, "j": 1, "weight": 1.93121}],
                        }
                    ],
                    "timing_ms": {"decode": 4.1, "queue": 6.3, "model": 5.2, "total": 16.9},
                }
            ]
        }
    )

    category: str
    version: str
    errors: list[PictureProblem] | None = Field(
        None, description="of a video, or in the background: pictures and frames that gave no pose, and why"
    )
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
    errors: list[PictureProblem] | None = Field(
        None, description="of a video, or in the background: pictures and frames that gave no pose, and why"
    )


class EstimateWithResult(BackgroundEstimate):
    """An estimate in the background, and what it found."""

    result: Estimate | None = Field(None, description="the poses, once it succeeded, of the format native")
    errors: list[PictureProblem] | None = Field(
        None,
        description="of the formats coco and csv, once it succeeded: pictures and frames that gave no pose, and why; "
        "of the format native they are in the result",
    )
