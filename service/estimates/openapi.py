"""Descriptions of POST /estimate for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from service.contract.media.animals import MOST_ANIMALS
from service.contract.messages import MAX_REFINE_STEPS
from service.http.openapi import CATEGORY, FILE, TEXT, field, file_field, form_body

from .formats.json_lines import MEDIA_TYPES as LINES
from .formats.registry import FORMATS
from .request import ALIGN, INCLUDABLE
from .results import ERRORS_HEADER
from .schemas import BackgroundEstimate

_ITERATIONS = "iterations of refinement; one helps if parts are hidden, more add little"
# the fields beside the category and the files; the examples are for the address
_FIELDS = {
    "version": field("string", "a version of the category or an alias; by default the active one", examples=["active"]),
    "refine_steps": field("integer", _ITERATIONS, examples=[1], minimum=0, maximum=MAX_REFINE_STEPS, default=0),
    "include": field("string", f"comma-separated, any of {', '.join(INCLUDABLE)}", examples=["codes"]),
    "boxes": field(
        "string",
        "a JSON list with an entry for each picture: a box [x, y, width, height] in pixels, or [x, y, width, height, "
        "angle] with its heading in degrees clockwise from up, a list of such boxes for several objects, or "
        "null for the whole picture, as in "
        "[[10, 20, 200, 150], [[0, 0, 90, 90], [95, 5, 80, 80]], null]; each box counts as a picture. Or a file: CSV "
        "(image,x,y,width,height, and optionally angle), COCO with bbox or MegaDetector's JSON, of a video with a box "
        "for each frame; a picture that has none there gets no pose, nor does a frame unless it is located by motion",
        examples=["[null]"],
    ),
    "locate": field(
        "string",
        "of a video: motion takes what moves before a fixed camera as the thing, auto (the default) where it is sure, "
        "off takes whole frames. With a file of boxes of some frames, these hold there, and motion is for the others; "
        "region.by of an answer says which; off then leaves the others out, and so does auto if the file names all "
        "frames with a thing (MegaDetector's of a video, or CSV with numbered animals, with which motion is refused). "
        "motion is possible for pictures, too, of one fixed camera in their order",
        examples=["off"],
        enum=["auto", "motion", "off"],
    ),
    "max_animals": field(
        "integer",
        "of a video of a fixed camera: the most animals to find by motion; of several, each has a number (box) that it "
        "keeps, and a pose in the frames in which it is found",
        examples=[1],
        minimum=1,
        maximum=MOST_ANIMALS,
        default=1,
    ),
    "align": field(
        "string",
        "for views from above: heading rotates what the model sees so that the thing faces up, by the angle of its "
        "box, sent or found by motion, or in a picture by trying 24 directions; off does not rotate it. By default as "
        "the version was trained",
        examples=["off"],
        enum=list(ALIGN),
    ),
    "format": field(
        "string",
        "native JSON; coco: a COCO keypoints data set, with scores; csv: DeepLabCut's table, for a video with frame "
        "numbers as index; frames: a table beside it with the time, score and surprise of each pose; slp: SLEAP's; "
        "boxes: where the thing was found, as CSV that the field boxes takes; jsonl: JSON lines",
        examples=["native"],
        enum=list(FORMATS),
        default="native",
    ),
    "landmarks": field("string", "a set of landmarks of the version, to add to each pose", examples=["anatomy"]),
    "every": field(
        "integer", "of a video: take the first frame and every n-th after it", examples=[5], minimum=1, default=1
    ),
    "smooth": field(
        "string",
        "of a video: smooth each keypoint over time, by savgol (Savitzky-Golay, third degree) or median, over 7 and 5 "
        "frames or another odd number, as in savgol:11; raw keypoints are kept beside. Not for JSON lines",
        examples=["savgol"],
    ),
    "max_gap": field(
        "integer", "with smooth: the longest gap in frames that is interpolated", examples=[5], minimum=0, default=5
    ),
}

# the answers beside our JSON
ANSWERS = {
    "description": "the poses, in the requested format or media type",
    "headers": {
        ERRORS_HEADER: {
            "description": "of a video with frames without a pose, or a damaged end: JSON, their number and the first",
            **TEXT,
        }
    },
    "content": dict.fromkeys((*LINES, "text/csv"), TEXT),
}
BACKGROUND_ANSWER = {
    "description": "with `Prefer: respond-async`: accepted; its status is at the address in `Location`",
    "headers": {"Location": TEXT, "Preference-Applied": TEXT},
    "model": BackgroundEstimate,
}
# the fields in the address, without defaults: those are the form's
PARAMETERS = {
    "parameters": [
        {
            "name": name,
            "in": "query",
            "description": f"instead of the form's field: {schema['description']}",
            "schema": {key: value for key, value in schema.items() if key not in ("description", "default")},
        }
        for name, schema in _FIELDS.items()
    ]
}


def estimate_body(max_images: int) -> dict[str, Any]:
    """Describe the form of POST /estimate."""
    pictures = f"JPEG, PNG, WebP, AVIF, HEIC, BMP or TIFF pictures, up to {max_images}"
    properties = {
        "category": CATEGORY,
        "images": field("array", pictures, items=FILE, minItems=1, maxItems=max_images),
        **{
            name: {key: value for key, value in schema.items() if key != "examples"} for name, schema in _FIELDS.items()
        },
        "video": file_field(
            "a video (MP4, MOV, AVI, MKV, WebM, MPEG, TS, WMV, FLV), or a TIFF of many pages, instead of images"
        ),
    }
    return form_body(properties, ["category"], one_of=["images", "video"])
