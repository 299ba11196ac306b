"""Descriptions of POST /estimate for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from service.contract.messages import MAX_REFINE_STEPS
from service.http.openapi import CATEGORY, FILE, form_body

from .formats.json_lines import MEDIA_TYPES as LINES
from .formats.registry import FORMATS
from .pictures import INCLUDABLE
from .results import ERRORS_HEADER
from .schemas import BackgroundEstimate

_LINES_EXAMPLE = (
    '{"index": 1, "width": 640, "height": 480, "keypoints": [{"id": 0, "x": 101.5, "y": 88.2, "score": 0.94}], '
    '"surprise": 0.41}\n'
    '{"index": 0, "error": {"code": "not_an_image", "status": 422, "detail": "images[0] (a.png): …"}}\n'
    '{"summary": {"category": "dog", "version": "20261125T091242-12e65c", "pictures": 2, "poses": 1, "failed": 1, '
    '"links": [{"i": 0, "j": 3, "weight": 0.71}], "timing_ms": {"total": 61.2}}}\n'
)
_CSV_EXAMPLE = "scorer,PPL_dog_20261125T091242-12e65c,…\nbodyparts,keypoint_0,…\ncoords,x,…\n"

# the fields beside the category and the files: schema, and example in the address
_FIELDS: dict[str, tuple[dict[str, Any], Any]] = {
    "version": (
        {"type": "string", "description": "a version of the category or an alias; by default the active one"},
        "active",
    ),
    "refine_steps": (
        {
            "type": "integer",
            "minimum": 0,
            "maximum": MAX_REFINE_STEPS,
            "default": 0,
            "description": "iterations of refinement; one helps if parts are hidden, more add little",
        },
        1,
    ),
    "include": (
        {"type": "string", "description": f"comma-separated, any of {', '.join(INCLUDABLE)}"},
        "codes",
    ),
    "boxes": (
        {
            "type": "string",
            "description": "a JSON list with an entry for each picture: a box [x, y, width, height] in pixels, a list "
            "of such boxes for several objects, or null for the whole picture, as in "
            "[[10, 20, 200, 150], [[0, 0, 90, 90], [95, 5, 80, 80]], null]; each box counts as a picture",
        },
        "[null]",
    ),
    "format": (
        {
            "type": "string",
            "enum": list(FORMATS),
            "default": FORMATS[0],
            "description": "native JSON; coco: a COCO keypoints data set, with scores; csv: DeepLabCut's table",
        },
        "native",
    ),
    "landmarks": (
        {"type": "string", "description": "a set of landmarks of the version, to add to each pose"},
        "anatomy",
    ),
    "every": (
        {
            "type": "integer",
            "minimum": 1,
            "default": 1,
            "description": "of a video: take the first frame and every n-th after it",
        },
        5,
    ),
}


def estimate_answers() -> dict[str, Any]:
    """Describe the answers of POST /estimate beside our JSON."""
    text = {"schema": {"type": "string"}}
    lines = {media_type: {**text, "example": _LINES_EXAMPLE} for media_type in LINES}
    return {
        "description": "the poses, in the requested format or media type",
        "headers": {
            ERRORS_HEADER: {
                "description": "of a video with frames without a pose, or a damaged end: JSON, their number and the "
                "first",
                **text,
            }
        },
        "content": {**lines, "text/csv": {**text, "example": _CSV_EXAMPLE}},
    }


def background_answer() -> dict[str, Any]:
    """Describe the answer of POST /estimate with ``Prefer: respond-async``."""
    return {
        "description": "with `Prefer: respond-async`: accepted; its status is at the address in `Location`",
        "headers": {"Location": {"schema": {"type": "string"}}, "Preference-Applied": {"schema": {"type": "string"}}},
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
        **{name: schema for name, (schema, _) in _FIELDS.items()},
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
                "schema": {key: value for key, value in schema.items() if key not in ("description", "default")}
                | {"examples": [example]},
            }
            for name, (schema, example) in _FIELDS.items()
        ]
    }
