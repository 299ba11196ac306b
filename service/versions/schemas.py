"""Response and request bodies about versions: priors, memories, aliases, names, landmarks and differences.

Positions in a prior are normalised: (x, y) in [-1, 1] over the model's square, y down.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from service.contract.versions.landmarks import LandmarkSet
from service.contract.versions.quality import Quality

NormalizedPoint = tuple[float, float]
Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    """A page of a list."""

    items: list[Item]
    next_cursor: str | None = None


class OfVersion(BaseModel):
    """A body about one version of a category."""

    category: str
    version: str


class Link(BaseModel):
    """A pair of keypoints i < j and how strongly the prior links them."""

    i: int
    j: int
    weight: float = Field(ge=0, description="0 and up; compare it with the strongest link of the prior")


class Prior(OfVersion):
    """The prior of a category. Coordinates are normalised: [-1, 1] over the model's square, y down."""

    num_keypoints: int
    keypoint_names: list[str] | None
    keypoint_prior: list[NormalizedPoint] = Field(description="the typical pose: (x, y) of each keypoint")
    connectivity_prior: list[list[float]] = Field(description="symmetric matrix of link strengths")
    links: list[Link] = Field(
        description="the links that one would draw, the strongest first: a tree of short and strong ones; all pairs of "
        "the matrix with include=links"
    )
    skeleton: list[tuple[int, int]] = Field(default_factory=list, description="keypoints i < j of the links to draw")
    link_width: float = Field(description="sigma squared of the link map, in units of [-1, 1] squared")
    keypoint_prior_source: Literal["memory", "predefined", "random", "mean_pose"] = Field(
        "memory",
        description="where the keypoint prior comes from: distilled from the memory, predefined or random as the "
        "settings say, or, with the method autolink, the mean pose of the training pictures",
    )
    method: str = Field("ppl", description="ppl, or autolink, which has no learned prior and no memory")
    mode: str = Field("stills", description="stills or clips: what the training learned from")
    settings: dict[str, Any] = Field(description="every setting of the model")
    training: dict[str, Any] = Field(description="job, time, pictures, steps, seconds, device, last losses")
    evaluation: dict[str, Any] | None = Field(
        None, description="if the job came with labels: the errors by protocol, and on how many pictures"
    )
    quality: Quality | None = Field(
        None, description="how good it is, measured without labels; null for versions of releases that did not measure"
    )


class Snapshot(BaseModel):
    """The prior after some training steps."""

    step: int
    keypoint_prior: list[NormalizedPoint] | None = Field(
        description="(x, y) of each keypoint in [-1, 1]; null with the method autolink, which has none"
    )
    link_weights: list[float] = Field(description="of the pairs i < j in the order 0-1, 0-2, …, 1-2, …")


class History(OfVersion):
    """Snapshots of a prior during training, the first step first."""

    snapshots: list[Snapshot]


class PriorEntry(BaseModel):
    """A category that has at least one version."""

    category: str
    version: str | None = Field(description="the active version")
    num_versions: int
    num_keypoints: int | None = None
    created_at: str | None = Field(None, description="of the active version")


class PriorPage(Page[PriorEntry]):
    """A page of the list of priors, sorted by category name."""


class VersionEntry(OfVersion):
    """A version of a category."""

    active: bool = Field(description="whether requests without a version get this one")
    aliases: list[str] = Field(default=[], description="the names that point to it, `active` among them")
    created_at: str | None = None
    job_id: str | None = None
    preset: str | None = None
    continued_from: str | None = Field(
        default=None, description="CATEGORY@VERSION whose weights its training started from", examples=["dog@v1"]
    )


class VersionPage(Page[VersionEntry]):
    """A page of the list of versions, the newest first."""


class Prototype(BaseModel):
    """A pose that represents a cluster of the training pictures."""

    keypoints: list[NormalizedPoint] = Field(description="decoded from the codes, in [-1, 1]")
    codes: list[int] = Field(description="which vector of each memory bank")
    count: int = Field(description="training pictures in the cluster")


class Variation(BaseModel):
    """What one memory bank varies: a pose with each of its vectors in turn, while the other banks keep theirs."""

    bank: int
    prototype: int | None = Field(
        description="the prototype that is varied; null for the keypoint prior, made of the mean vector of each bank"
    )
    keypoints: list[list[NormalizedPoint]] = Field(description="(V, K, 2): the pose with each vector of the bank")


class Memory(OfVersion):
    """The memory behind a prior: M banks of V vectors of D numbers."""

    num_banks: int = Field(description="M")
    bank_size: int = Field(description="V")
    token_dim: int = Field(description="D")
    use_counts: list[list[float]] = Field(description="(M, V): how often each vector was the nearest during training")
    prototypes: list[Prototype] = Field(description="the largest cluster first")
    surprise_scale: float | None = Field(
        None,
        description="the distance between a pose and its reconstruction from the memory (root mean square over the "
        "keypoints, in units of [-1, 1]) that counts as a surprise of 1; null if it was not measured",
    )
    vectors: list[list[list[float]]] | None = Field(None, description="(M, V, D), with include=vectors")
    variation: Variation | None = Field(None, description="with bank: the poses of that bank's vectors")


class KeypointChange(BaseModel):
    """A keypoint in two priors."""

    from_id: int = Field(description="its number in the older version")
    to_id: int = Field(description="its number in the newer version")
    name: str | None = Field(description="its name, if the keypoints of either version were named")
    dx: float = Field(description="how far it moved to the right; the square is 2 wide")
    dy: float = Field(description="how far it moved down")
    moved: float = Field(description="the distance between both positions")


class LinkChange(BaseModel):
    """A link in two priors; ends and weights are null in a version that lacks one of its keypoints."""

    from_ends: tuple[int, int] | None
    to_ends: tuple[int, int] | None
    from_weight: float | None
    to_weight: float | None
    from_share: float | None = Field(description="of the strongest link of its prior, from 0 to 1")
    to_share: float | None


class PriorDiff(BaseModel):
    """The difference between two priors of a category."""

    category: str
    from_version: str
    to_version: str
    matched_by: Literal["number", "name", "position"] = Field(description="how the keypoints were matched")
    why: str = Field(description="why they were matched this way")
    keypoints: list[KeypointChange]
    mean_moved: float
    lost_keypoints: list[int] = Field(description="keypoints of the older version without a match in the newer one")
    gained_keypoints: list[int] = Field(description="keypoints of the newer version without a match in the older one")
    strong: float = Field(description="the least share of its prior's strongest link that makes a link count")
    lost_links: list[LinkChange] = Field(description="that count in the older version and not in the newer one")
    gained_links: list[LinkChange]
    links: list[LinkChange] = Field(description="all pairs of matched keypoints, the largest change first")


class KeypointNames(OfVersion):
    """The names of a version's keypoints, in the order of their numbers."""

    names: list[str] = Field(description="K names; keypoint_0, keypoint_1, … unless they were named")


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
    labels_without_image: int = Field(description="labels whose picture is not in the request; they did not count")


class LandmarksEntry(OfVersion):
    """A set of landmarks in the list of a version's sets."""

    name: str
    landmarks: list[str]
    images: int
    error_percent: float = Field(description="cross-validated, in percent of the side of the model's square")
    created_at: str


class LandmarksPage(Page[LandmarksEntry]):
    """The sets of landmarks of a version, sorted by name."""


class AliasEntry(BaseModel):
    """A name and the version that it points to."""

    category: str
    alias: str = Field(examples=["champion"])
    version: str = Field(examples=["20261123T064501-1f3a9c"])


class AliasPage(Page[AliasEntry]):
    """The aliases of a category: `active` first, the others sorted by name."""


class AliasTarget(BaseModel):
    """The new version of an alias."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"version": "20261123T064501-1f3a9c"}]})

    version: str = Field(description="a version of the category, or an alias of it, which is resolved now")
