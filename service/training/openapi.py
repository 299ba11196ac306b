"""Descriptions of the request bodies for training jobs and datasets, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from model.config import DEFAULT_PRESET, PRESETS, PPLConfig, settings
from service.contract.jobs.files import MAX_LABELS_BYTES
from service.http.openapi import CATEGORY, FILE, form_body, object_content, request_body

from .dataset_intake import MAX_FILES

_TYPES = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}
_ARCHIVE = {
    **FILE,
    "description": "zip, tar or tar.gz of JPEG, PNG, WebP, BMP or TIFF pictures, in folders or not, or of videos; or "
    "one bare video file",
}
_LABELS = {
    **FILE,
    "description": f"keypoints of some of the pictures, CSV or COCO keypoints JSON, {MAX_LABELS_BYTES >> 20} MiB at "
    "most; training never sees them, they only measure what it learned",
}


def dataset_body() -> dict[str, Any]:
    """Describe the form of POST /datasets."""
    properties = {
        "archive": _ARCHIVE,
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
            "description": "how to read it: auto reads videos as clips and pictures as stills; choose one if both are "
            "in it",
        },
        "labels": _LABELS,
    }
    return form_body(properties, [])


def train_body() -> dict[str, Any]:
    """Describe the form and the JSON of POST /train-jobs. Each setting of the model is a field."""
    prior_rule = "needed if keypoint_prior or connectivity_prior is predefined, refused otherwise"
    head = {
        "category": CATEGORY,
        "preset": {
            "type": "string",
            "enum": list(PRESETS),
            "default": DEFAULT_PRESET,
            "description": "the settings that are not sent; compact learns on a CPU, paper needs a GPU",
        },
        "activate": {
            "type": "boolean",
            "default": True,
            "description": "whether the version becomes the category's active one when the job succeeds",
        },
        "webhook_url": {
            "type": "string",
            "format": "uri",
            "description": "receives a signed POST when the job ends; a public address, unless the server allows more",
            "examples": ["https://example.org/hooks/ppl"],
        },
        "continue_from": {
            "type": "string",
            "description": "version or alias of the category, or CATEGORY@VERSION, whose weights to start from; its "
            "settings are the defaults",
            "examples": ["active"],
        },
        "dataset": {
            "type": "string",
            "pattern": "^[0-9a-f]{24}$",
            "description": "id of a dataset to train on, instead of sending or naming pictures",
        },
        "prior_from": {
            "type": "string",
            "description": f"CATEGORY or CATEGORY@VERSION whose prior to start from; {prior_rule}",
            "examples": ["dog"],
        },
    }
    prior = f"a prior to start from, JSON as GET /priors/{{category}} returns it; {prior_rule}"
    form = {"archive": _ARCHIVE, "labels": _LABELS, "prior": {**FILE, "description": prior}}
    members = {
        "folder": {
            "type": "string",
            "description": "an existing folder of pictures below the server's data root (PPL_DATA_ROOT)",
            "examples": ["imports/dog"],
        },
        "labels": {"type": "string", "description": "a CSV or JSON file of labels below the server's data root"},
        "prior": {"type": "object", "description": prior},
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
        schema: dict[str, Any] = {
            "type": _TYPES[kind],
            "description": f"{allowed.description}. {str(allowed).capitalize()}; {values}",
        }
        if allowed.choices:
            schema["enum"] = list(allowed.choices)
        if kind in ("int", "float") and allowed.low is not None:
            schema["minimum"] = allowed.low
        if kind in ("int", "float") and allowed.high is not None:
            schema["maximum"] = allowed.high
        if allowed.multiple_of:
            schema["multipleOf"] = allowed.multiple_of
        described[name] = schema
    return described
