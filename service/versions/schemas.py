"""The shapes of the API's answers about versions: aliases, names, landmarks, and how two priors differ."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.contract.versions.landmarks import LandmarkSet


class KeypointChange(BaseModel):
    """A keypoint in two priors."""

    from_id: int = Field(description="its number in the one version")
    to_id: int = Field(description="its number in the other")
    name: str | None = Field(description="where the keypoints of a version were named")
    dx: float = Field(description="how far it moved to the right, the square being 2 wide")
    dy: float = Field(description="and down")
    moved: float = Field(description="how far it moved in all")


class LinkChange(BaseModel):
    """A link in two priors; where its keypoints have no match in one of them, the ends and weights there are null."""

    from_ends: tuple[int, int] | None
    to_ends: tuple[int, int] | None
    from_weight: float | None
    to_weight: float | None
    from_share: float | None = Field(description="of the strongest link of its prior, from 0 to 1")
    to_share: float | None


class PriorDiff(BaseModel):
    """How one prior differs from another of its category."""

    category: str
    from_version: str
    to_version: str
    matched_by: Literal["number", "name", "position"] = Field(description="how it was told which keypoint is which")
    why: str = Field(description="and why so")
    keypoints: list[KeypointChange]
    mean_moved: float
    lost_keypoints: list[int] = Field(description="of the one version, without a match in the other")
    gained_keypoints: list[int] = Field(description="of the other, without a match in the one")
    strong: float = Field(description="share of its prior's strongest link from which on a link counts as one")
    lost_links: list[LinkChange] = Field(description="that count in the one version and not in the other")
    gained_links: list[LinkChange]
    links: list[LinkChange] = Field(description="all pairs of matched keypoints, what changed most first")


class KeypointNames(BaseModel):
    """The names of a version's keypoints, in the order of their numbers."""

    category: str
    version: str
    names: list[str] = Field(description="K names; keypoint_0, keypoint_1, … where nobody gave any")


class NewKeypointNames(BaseModel):
    """Names to give to a version's keypoints."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"names": ["nose", "neck", "tail", "left paw", "right paw"]}]}
    )

    names: list[str] = Field(
        max_length=1000, description="K different names of 1 to 64 characters, in the order of the keypoints' numbers"
    )


class Landmarks(LandmarkSet):
    """A set of landmarks of a version: a linear map from its keypoints to points that a user labelled."""

    category: str
    version: str


class FittedLandmarks(Landmarks):
    """A set of landmarks that was just fitted."""

    unlabelled_images: int = Field(description="pictures of the request without labels; they did not count")
    labels_without_image: int = Field(description="labelled pictures that did not come; they did not count")


class LandmarksEntry(BaseModel):
    """A set of landmarks in the list of a version's."""

    category: str
    version: str
    name: str
    landmarks: list[str]
    images: int
    error_percent: float = Field(description="cross-validated, in percent of the side of the model's square")
    created_at: str


class LandmarksPage(BaseModel):
    """The sets of landmarks of a version, by name."""

    items: list[LandmarksEntry]
    next_cursor: str | None = None


class AliasEntry(BaseModel):
    """A name and the version that it points to."""

    category: str
    alias: str = Field(examples=["champion"])
    version: str = Field(examples=["20261123T064501-1f3a9c"])


class AliasPage(BaseModel):
    """The aliases of a category: `active` first, the others by name."""

    items: list[AliasEntry]
    next_cursor: str | None = None


class AliasTarget(BaseModel):
    """Where an alias shall point."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"version": "20261123T064501-1f3a9c"}]})

    version: str = Field(description="a version of the category, or an alias of it: that points to it now")
