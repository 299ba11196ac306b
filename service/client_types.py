"""The API's answers as the client hands them out. Unknown members of a later release are dropped.

Pixel coordinates: (0, 0) is the centre of the first pixel of the picture as uploaded, EXIF
orientation applied; x to the right, y down. Coordinates of a prior are normalised to [-1, 1].
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

Setting = bool | int | float | str


class Keypoint(BaseModel):
    """One keypoint in pixels of the uploaded picture, with its score in [0, 1]."""

    id: int
    x: float
    y: float
    score: float


class Point(BaseModel):
    """A position in pixels of the uploaded picture."""

    x: float
    y: float


class Link(BaseModel):
    """A pair of keypoints i < j and its strength."""

    i: int
    j: int
    weight: float


class ImageEstimate(BaseModel):
    """The pose in one picture. ``trajectory``, ``link_map`` and ``overlay`` only where asked for;
    the last two are PNG data URLs (see :func:`png_bytes`)."""

    index: int
    width: int
    height: int
    keypoints: list[Keypoint]
    links: list[Link]
    trajectory: list[list[Point]] | None = None
    link_map: str | None = None
    overlay: str | None = None


class Estimate(BaseModel):
    """The poses of some pictures of one category."""

    category: str
    version: str
    images: list[ImageEstimate]
    timing_ms: dict[str, float]

    @classmethod
    def joined(cls, parts: Sequence[Estimate]) -> Estimate:
        """Several answers as one: indices run through, timings are summed."""
        if len(parts) == 1:
            return parts[0]
        images = [image for part in parts for image in part.images]
        timing: Counter[str] = Counter()
        for part in parts:
            timing.update(part.timing_ms)
        return cls(
            category=parts[0].category,
            version=parts[0].version,
            images=[image.model_copy(update={"index": index}) for index, image in enumerate(images)],
            timing_ms=dict(timing),
        )


class Prior(BaseModel):
    """The pose prior of a category: mean pose, strength of each link, and how it was trained."""

    category: str
    version: str
    num_keypoints: int
    keypoint_names: list[str] | None
    keypoint_prior: list[tuple[float, float]]
    connectivity_prior: list[list[float]]
    links: list[Link]
    settings: dict[str, Setting]
    training: dict[str, Any]


class PriorEntry(BaseModel, extra="allow"):
    """A category in the list of priors, with its active version."""

    category: str
    version: str | None


class Prototype(BaseModel):
    """A pose that stands for ``count`` training pictures, and its codes in the memory."""

    keypoints: list[tuple[float, float]]
    codes: list[int]
    count: int


class Memory(BaseModel):
    """The hierarchical memory: M banks of V vectors of D numbers, how often each was used."""

    category: str
    version: str
    num_banks: int
    bank_size: int
    token_dim: int
    use_counts: list[list[float]]
    prototypes: list[Prototype]


def png_bytes(data_url: str) -> bytes:
    """The PNG in a data URL."""
    return base64.b64decode(data_url.partition(",")[2])
