"""How good a version is, measured without labels; see :mod:`model.quality`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Verdict = Literal["good", "doubtful", "failed"]


class Quality(BaseModel):
    """How good a version is, measured on its training pictures, without labels."""

    model_config = ConfigDict(allow_inf_nan=False)

    verdict: Verdict
    advice: str = Field(max_length=1000, description="why, and what to do")
    score: float = Field(
        ge=0,
        le=1,
        description="one number to compare versions by: the agreement, at least 0; good versions have 0.2 to 0.5. For "
        "versions without an agreement: the consistency times the root of the mean score",
    )
    agreement: float | None = Field(
        None,
        description="how well keypoints and the parts found by a network trained on other pictures predict each "
        "other's positions: 1 perfectly, 0 not at all; null for versions of releases that did not measure it",
    )
    consistency: float = Field(
        description="how well keypoints follow the picture when it is turned, scaled and shifted: 1 perfectly, 0 not"
    )
    movement_percent: float = Field(
        ge=0, description="how far keypoints lie from their mean places over the pictures, in percent of the side"
    )
    explained: float = Field(
        description="share of the error of a reconstruction from the mean pose that the picture's own pose removes"
    )
    idle_keypoints: list[int] = Field(description="keypoints whose links do not change the reconstruction")
    mean_score: float = Field(ge=0, le=1, description="mean of the keypoints' scores")
    pictures: int = Field(ge=1, description="training pictures it was measured on")
