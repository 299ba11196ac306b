"""Stored landmarks: the linear map from a version's keypoints, and its cross-validated errors."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.contract.errors import BadLandmarks

MOST_LANDMARKS = 128  # in a set
MOST_SETS = 100  # of a version
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

Name = Annotated[str, Field(min_length=1, max_length=200)]
Weights = tuple[float, float]


def check_set_name(name: str) -> str:
    """Return the name of a set of landmarks if it is valid. Raises BadLandmarks, also for paths."""
    if not _NAME.fullmatch(name):
        raise BadLandmarks(
            f"landmarks {name[:80]!r} must start with a letter a-z or a digit and hold only a-z, 0-9, - and _, "
            "64 characters at most"
        )
    return name


class _Plain(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)


class LandmarkError(_Plain):
    """The error of one landmark on pictures that its map was not fitted on."""

    name: Name
    visible: int = Field(ge=0, description="labelled pictures that show it")
    error_percent: float | None = Field(
        description="mean distance in percent of the side of the model's square; null if too few pictures show it"
    )
    error_px: float | None = Field(description="mean distance in pixels of the labelled pictures")


class CrossValidation(_Plain):
    """Errors on labelled pictures, each predicted by a map fitted on others."""

    folds: int = Field(ge=2, description="parts that the pictures were split into; each was left out once")
    error_percent: float = Field(description="mean over all visible landmarks, in percent of the model's square")
    error_px: float = Field(description="the same in pixels of the labelled pictures")
    mean_place_percent: float = Field(description="error of predicting each landmark's mean position in the square")
    per_landmark: list[LandmarkError]


class LandmarkSet(_Plain):
    """A named set of J landmarks of a version.

    Attributes:
        maps: (J, 2K + 1, 2), from x and y of each keypoint in [0, 1] of the model's square, and 1, to a landmark.
    """

    format: Literal[1] = 1
    name: str = Field(description="of the set")
    landmarks: list[Name] = Field(min_length=1, max_length=MOST_LANDMARKS, description="names of the J landmarks")
    num_keypoints: int = Field(ge=1, le=1000, description="K")
    images: int = Field(ge=1, description="labelled pictures that it was fitted on")
    strength: float = Field(gt=0, description="of the ridge regression, chosen by cross-validation")
    maps: list[list[Weights]] = Field(
        description="(J, 2K + 1, 2): from x and y of each keypoint in [0, 1] of the model's square, and 1"
    )
    cross_validation: CrossValidation
    created_at: str = Field(max_length=40)

    @model_validator(mode="after")
    def _fits(self) -> LandmarkSet:
        if len(set(self.landmarks)) != len(self.landmarks):
            raise ValueError("two landmarks have the same name")
        rows = 2 * self.num_keypoints + 1
        if len(self.maps) != len(self.landmarks) or any(len(weights) != rows for weights in self.maps):
            raise ValueError(f"maps are not {len(self.landmarks)} of {rows} rows")
        return self

    @classmethod
    def parse(cls, document: Any) -> LandmarkSet:
        """Parse a document. Raises BadLandmarks."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"])) or "it"
            raise BadLandmarks(f"the document is not a set of landmarks: {where[:80]}: {fault['msg'][:200]}") from error
