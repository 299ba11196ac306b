"""What seems wrong with a job's or dataset's pictures before any training."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, Field


class WarningCode(StrEnum):
    """The kind of a warning."""

    VARYING_PLACE = "varying_place"
    MOVING_THING = "moving_thing"
    UNUSED_BOXES = "unused_boxes"
    UNUSED_LABELS = "unused_labels"


class PictureWarning(BaseModel):
    """A warning about pictures that training takes all the same."""

    code: WarningCode = Field(
        description="`varying_place`: the thing is not of one size and in one place; `moving_thing`: a small thing "
        "moves before a still background; `unused_boxes`, `unused_labels`: some are of pictures or frames that the "
        "training does not take"
    )
    detail: str = Field(description="what was seen and what to do")
