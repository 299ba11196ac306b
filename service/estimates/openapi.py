"""Descriptions of POST /estimate for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from service.contract.messages import MAX_REFINE_STEPS
from service.http.openapi import CATEGORY, FILE, TEXT, form_body

from .formats.json_lines import MEDIA_TYPES as LINES
from .formats.registry import FORMATS
from .request import INCLUDABLE
from .results import ERRORS_HEADER
from .schemas import BackgroundEstimate

# the fields beside the category and the files; the examples are for the address
_FIELDS: dict[str, dict[str, Any]] = {
    "version": {
        "type": "string",
        "description": "a version of the category or an alias; by default the active one",
        "examples": ["active"],
    },
    "refine_steps": {
        "type": "integer",
        "minimum": 0,
        "maximum": MAX_REFINE_STEPS,
        "default": 0,
        "description": "iterations of refinement; one helps if parts are hidden, more add little",
        "examples": [1],
    },
    "include": {
        "type": "string",
        "description": f"comma-separated, any of {', '.join(INCLUDABLE)}",
        "examples": ["codes"],
    },
    "boxes": {
        "type": "string",
        "description": "a JSON list with an entry for each picture: a box [x, y, width, height] in pixels, a list "
        "of such boxes for several objects, or null for the whole picture, as in "
        "[[10, 20, 200, 150], [[0, 0, 90, 90], [95, 5, 80, 80]], null]; each box counts as a picture",
        "examples": ["[null]"],
    },
    "format": {
        "type": "string",
        "enum": list(FORMATS),
        "default": "native",
        "description": "native JSON; coco: a COCO keypoints data set, with scores; csv: DeepLabCut's table",
        "examples": ["native"],
    },
    "landmarks": {
        "type": "string",
        "description": "a set of landmarks of the version, to add to each pose",
        "examples": ["anatomy"],
    },
    "every": {
        "type": "integer",
        "minimum": 1,
        "default": 1,
        "description": "of a video: take the first frame and every n-th after it",
        "examples": [5],
    },
}


def _leave_out(schema: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name not in names}


def estimate_answers() -> dict[str, Any]:
    """Describe the answers of POST /estimate beside our JSON."""
    errors = "of a video with frames without a pose, or a damaged end: JSON, their number and the first"
    return {
        "description": "the poses, in the requested format or media type",
        "headers": {ERRORS_HEADER: {"description": errors, **TEXT}},
        "content": dict.fromkeys((*LINES, "text/csv"), TEXT),
    }


def background_answer() -> dict[str, Any]:
    """Describe the answer of POST /estimate with ``Prefer: respond-async``."""
    return {
        "description": "with `Prefer: respond-async`: accepted; its status is at the address in `Location`",
        "headers": {"Location": TEXT, "Preference-Applied": TEXT},
        "model": BackgroundEstimate,
    }


def estimate_body(max_images: int) -> dict[str, Any]:
    """Describe the form of POST /estimate."""
    properties = {
        "category": CATEGORY,
        "images": {
            "type": "array",
            "items": FILE,
            "minItems": 1,
            "maxItems": max_images,
            "description": f"JPEG, PNG, WebP, BMP or TIFF pictures, up to {max_images}",
        },
        **{name: _leave_out(schema, "examples") for name, schema in _FIELDS.items()},
        "video": {**FILE, "description": "a video (MP4, MOV, AVI, MKV, WebM) instead of images"},
    }
    return form_body(properties, ["category"], one_of=["images", "video"])


def estimate_parameters() -> dict[str, Any]:
    """Describe the fields as parameters in the address, without defaults: those are the form's."""
    return {
        "parameters": [
            {
                "name": name,
                "in": "query",
                "description": f"instead of the form's field: {schema['description']}",
                "schema": _leave_out(schema, "description", "default"),
            }
            for name, schema in _FIELDS.items()
        ]
    }
