"""What /docs shows of datasets beyond the contract's own shapes."""

from __future__ import annotations

from typing import Any

from service.contract.jobs.files import MAX_LABELS_BYTES
from service.http.openapi import FILE, form_body
from service.training.dataset_intake import MAX_FILES


def dataset_body() -> dict[str, Any]:
    """The form of POST /datasets."""
    properties = {
        "archive": {
            **FILE,
            "description": "zip, tar or tar.gz of JPEG, PNG, WebP, BMP or TIFF pictures, in folders or not, or of "
            "videos; or one bare video file",
        },
        "images": {
            "type": "array",
            "items": FILE,
            "maxItems": MAX_FILES,
            "description": "in place of an archive: pictures or videos, under their file names",
        },
        "name": {
            "type": "string",
            "maxLength": 100,
            "description": "what to call it; the archive's file name unless given",
            "examples": ["birds of the garden"],
        },
        "mode": {
            "type": "string",
            "enum": ["auto", "stills", "clips"],
            "default": "auto",
            "description": "what it is taken for: auto takes videos for clips and pictures for stills; must be given "
            "where both came",
        },
        "labels": {
            **FILE,
            "description": f"keypoints of some of the pictures, CSV or COCO keypoints JSON, {MAX_LABELS_BYTES >> 20} "
            "MiB at most; jobs of the dataset use them to measure what was learned",
        },
    }
    return form_body(properties, [])
