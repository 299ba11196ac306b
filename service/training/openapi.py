"""Descriptions of the request bodies for training jobs and datasets, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from model.config import DEFAULT_PRESET, PRESETS, PPLConfig, settings
from service.contract.jobs.files import MAX_LABELS_BYTES
from service.http.openapi import CATEGORY, FILE, field, file_field, form_body, object_content, request_body

from .dataset_intake import MAX_FILES

_TYPES = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}
_ARCHIVE = file_field(
    "zip, tar or tar.gz of JPEG, PNG, WebP, AVIF, HEIC, BMP or TIFF pictures, in folders or not, or of videos or "
    "multi-page TIFFs; or one bare video file"
)
_LABELS = file_field(
    f"keypoints of some pictures: CSV, DeepLabCut, SLEAP, Label Studio or COCO; {MAX_LABELS_BYTES >> 20} MiB at most; "
    "training never sees them, they only measure what it learned"
)
_BOXES = file_field(
    "where the thing is in each picture, the only part of it that training sees: CSV (image,x,y,width,height in "
    "pixels, and for align=heading angle in degrees clockwise from up; taken as it is), COCO with bbox, or "
    "MegaDetector's JSON (these get a margin of a tenth on each side). Of several boxes of a picture each is one to "
    "train on, of a frame of clips the most confident is taken. Frames of a fixed camera that it does not name get the "
    "box of what moves (locate); other pictures without one are skipped, and named"
)


def dataset_body() -> dict[str, Any]:
    """Describe the form of POST /datasets."""
    images = "in place of an archive: pictures or videos, under their file names"
    name = "what to call it; the archive's file name unless given"
    mode = "how to read it: auto reads videos as clips and pictures as stills; choose one if both are in it"
    properties = {
        "archive": _ARCHIVE,
        "images": field("array", images, items=FILE, maxItems=MAX_FILES),
        "name": field("string", name, maxLength=100, examples=["birds of the garden"]),
        "mode": field("string", mode, enum=["auto", "stills", "clips"], default="auto"),
        "labels": _LABELS,
        "boxes": _BOXES,
    }
    return form_body(properties, [])


def train_body() -> dict[str, Any]:
    """Describe the form and the JSON of POST /train-jobs. Each setting of the model is a field."""
    prior_rule = "needed if keypoint_prior or connectivity_prior is predefined, refused otherwise"
    prior = f"a prior to start from, JSON as GET /priors/{{category}} returns it; {prior_rule}"
    head = {
        "category": CATEGORY,
        "preset": field(
            "string",
            "the settings that are not sent; compact learns on a CPU, paper needs a GPU",
            enum=list(PRESETS),
            default=DEFAULT_PRESET,
        ),
        "activate": {
            "enum": [True, False, "always"],
            "default": True,
            "description": "whether the version becomes the category's active one when the job succeeds: not if its "
            "quality is failed, unless this is always",
        },
        "webhook_url": field(
            "string",
            "receives a signed POST when the job ends; a public address, unless the server allows more",
            format="uri",
            examples=["https://example.org/hooks/ppl"],
        ),
        "continue_from": field(
            "string",
            "version or alias of the category, or CATEGORY@VERSION, whose weights to start from; its settings are the "
            "defaults",
            examples=["active"],
        ),
        "dataset": field(
            "string", "id of a dataset to train on, instead of sending or naming pictures", pattern="^[0-9a-f]{24}$"
        ),
        "prior_from": field(
            "string",
            f"CATEGORY or CATEGORY@VERSION whose prior to start from; {prior_rule}",
            examples=["dog"],
        ),
    }
    form = {"archive": _ARCHIVE, "labels": _LABELS, "boxes": _BOXES, "prior": file_field(prior)}
    folder = "an existing folder of pictures below the server's data root (PPL_DATA_ROOT)"
    members = {
        "folder": field("string", folder, examples=["imports/dog"]),
        "labels": field("string", "a CSV or JSON file of labels below the server's data root"),
        "boxes": field("string", "a CSV or JSON file of boxes below the server's data root"),
        "prior": field("object", prior),
    }
    model = _describe_settings()
    example = {
        "summary": "pictures in imports/dog below the data root",
        "description": "first make the folder imports/dog below the server's data root, and put pictures into it",
        "value": {"category": "dog", "folder": "imports/dog", "preset": "compact", "steps": 2000},
    }
    return request_body(
        {
            "multipart/form-data": object_content({**head, **form, **model}, ["category"], ["archive", "dataset"]),
            "application/json": {
                **object_content({**head, **members, **model}, ["category"], ["folder", "dataset"]),
                "examples": {"folder": example},
            },
        }
    )


def _describe_settings() -> dict[str, dict[str, Any]]:
    """Describe every setting of the model, with its range and its default in each preset."""
    configs = {name: PPLConfig.from_dict(values).to_dict() for name, values in PRESETS.items()}
    described = {}
    for name, (kind, allowed) in settings().items():
        values = ", ".join(f"{config[name]} in {preset}" for preset, config in configs.items())
        rules = {
            "enum": list(allowed.choices) or None,
            "minimum": allowed.low,
            "maximum": allowed.high,
            "multipleOf": allowed.multiple_of,
        }
        described[name] = field(
            _TYPES[kind],
            f"{allowed.description}. {str(allowed).capitalize()}; {values}",
            **{rule: value for rule, value in rules.items() if value is not None},
        )
    return described
