"""Descriptions of the request bodies about versions, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from model.scoring.label_fitting import CHOICES
from service.http.openapi import FILE, NAME_PATTERN, field, file_field, form_body

from .landmarks import MAX_FIT_LABELS_BYTES


def landmarks_body(max_images: int) -> dict[str, Any]:
    """Describe the form of POST /priors/{category}/landmarks."""
    properties = {
        "name": field(
            "string",
            "of the set; POST /estimate takes it as landmarks=NAME",
            pattern=NAME_PATTERN,
            examples=["anatomy"],
        ),
        "images": field(
            "array",
            f"the labelled pictures, from 5 to {max_images}; 10 to 50 are usual",
            items=FILE,
            minItems=5,
            maxItems=max_images,
        ),
        "labels": file_field(
            "where the landmarks are: CSV with the columns image, keypoint, x, y (and visible), or COCO keypoints "
            f"JSON, {MAX_FIT_LABELS_BYTES >> 20} MiB at most; in pixels of the pictures"
        ),
        "labels_fit": field(
            "string",
            "labels that state another size of their pictures: exact refuses them, scale scales those of the same "
            "aspect ratio, and turns those of the stored picture as its EXIF orientation says",
            enum=list(CHOICES),
            default=CHOICES[0],
        ),
        "version": field("string", "a version of the category, or an alias of one; the active one unless given"),
        "boxes": field(
            "string",
            "where the thing is, as in POST /estimate: a JSON list of one [x, y, width, height] for each picture",
        ),
    }
    return form_body(properties, ["name", "images", "labels"])


def import_body() -> dict[str, Any]:
    """Describe the form of POST /priors/{category}/versions/import."""
    activate = "whether it becomes the active version; by default only if the category has none"
    properties = {"file": file_field("the zip that an export gave"), "activate": field("boolean", activate)}
    return form_body(properties, ["file"])
