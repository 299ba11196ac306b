"""Descriptions of the request bodies about versions, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from service.http.openapi import FILE, form_body

from .landmarks import MAX_FIT_LABELS_BYTES


def landmarks_body(max_images: int) -> dict[str, Any]:
    """Describe the form of POST /priors/{category}/landmarks."""
    properties = {
        "name": {
            "type": "string",
            "pattern": "^[a-z0-9][a-z0-9_-]{0,63}$",
            "description": "of the set; POST /estimate takes it as landmarks=NAME",
            "examples": ["anatomy"],
        },
        "images": {
            "type": "array",
            "items": FILE,
            "minItems": 5,
            "maxItems": max_images,
            "description": f"the labelled pictures, from 5 to {max_images}; 10 to 50 are usual",
        },
        "labels": {
            **FILE,
            "description": "where the landmarks are: CSV with the columns image, keypoint, x, y (and visible), or COCO "
            f"keypoints JSON, {MAX_FIT_LABELS_BYTES >> 20} MiB at most; in pixels of the pictures",
        },
        "version": {
            "type": "string",
            "description": "a version of the category, or an alias of one; the active one unless given",
        },
        "boxes": {
            "type": "string",
            "description": "where the thing is, as in POST /estimate: a JSON list of one [x, y, width, height] for "
            "each picture",
        },
    }
    return form_body(properties, ["name", "images", "labels"])


def import_body() -> dict[str, Any]:
    """Describe the form of POST /priors/{category}/versions/import."""
    properties = {
        "file": {**FILE, "description": "the zip that an export gave"},
        "activate": {
            "type": "boolean",
            "description": "whether it becomes the active version; by default only if the category has none",
        },
    }
    return form_body(properties, ["file"])
