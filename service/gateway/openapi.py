"""What /docs shows beyond the code's own types: forms, examples, and errors as problem documents."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response
from starlette.routing import Route

from model.config import DEFAULT_PRESET, PRESETS, PPLConfig, settings
from service.access.guard import needed_scope
from service.contract.jobs.files import MAX_LABELS_BYTES
from service.contract.messages import MAX_REFINE_STEPS
from service.estimates.formats.json_lines import MEDIA_TYPES as LINES
from service.estimates.formats.registry import FORMATS
from service.estimates.pictures import INCLUDABLE
from service.estimates.schemas import BackgroundEstimate
from service.http.openapi import CATEGORY, FILE, form_body, object_content, request_body
from service.http.schemas import Problem
from service.versions.landmarks import MAX_FIT_LABELS_BYTES

from . import openapi_examples

_EXAMPLE_ADDRESS = "http://127.0.0.1:8000"
_ADDRESS = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]{1,255}(/[A-Za-z0-9._/-]{0,255})?")
TITLE = "Pose Prior Learner"
_TYPES = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}

DESCRIPTION = """
Pictures of one kind of thing in, without labels; its skeleton, and the pose in every further picture out.

1. **Train**: send an archive of pictures of one category and follow the job.
   ```sh
   curl -F category=dog -F archive=@pictures.zip http://127.0.0.1:8000/train-jobs
   curl http://127.0.0.1:8000/train-jobs
   ```
2. **Estimate** poses in other pictures of it.
   ```sh
   curl -F category=dog -F images=@photo.jpg http://127.0.0.1:8000/estimate
   ```
3. **Look** at what was learned: `/priors/dog`, or its picture at `/priors/dog/link-map`.

Every error is a problem document (`application/problem+json`) with `type`, `title`, `status`, `detail` and
`code`. The detail says what came, what was expected and what to do; the code is a word for programs.
Lists come in pages: pass `next_cursor` as `cursor` until it is null.
"""

TAGS = [
    {"name": "training", "description": "Jobs that learn a category's prior from pictures."},
    {"name": "datasets", "description": "Pictures that are kept, looked at, and trained from as often as wanted."},
    {"name": "poses", "description": "Keypoints and links in pictures."},
    {"name": "priors", "description": "What has been learned. Served from disk, also while no worker runs."},
    {"name": "landmarks", "description": "Points of your own, told from the keypoints after a few labelled pictures."},
    {"name": "versions", "description": "Aliases that move from version to version, and versions that go and come."},
    {"name": "operation", "description": "For whoever runs the service."},
]


_LINES = (
    '{"index": 1, "width": 640, "height": 480, "keypoints": [{"id": 0, "x": 101.5, "y": 88.2, "score": 0.94}], '
    '"surprise": 0.41}\n'
    '{"index": 0, "error": {"code": "not_an_image", "status": 422, "detail": "images[0] (a.png): …"}}\n'
    '{"summary": {"category": "dog", "version": "20261125T091242-12e65c", "pictures": 2, "poses": 1, "failed": 1, '
    '"links": [{"i": 0, "j": 3, "weight": 0.71}], "timing_ms": {"total": 61.2}}}\n'
)


_ESTIMATE_EXAMPLES = {
    "version": "active",
    "refine_steps": 1,
    "include": "codes",
    "boxes": "[null]",
    "format": "native",
    "landmarks": "anatomy",
    "every": 5,
}
# beside the category and the files
_ESTIMATE_FIELDS: dict[str, dict[str, Any]] = {
    "version": {
        "type": "string",
        "description": "a version of the category, or an alias of one; the active one unless given",
    },
    "refine_steps": {
        "type": "integer",
        "minimum": 0,
        "maximum": MAX_REFINE_STEPS,
        "default": 0,
        "description": "rounds of refinement; one helps where parts are hidden, more add little",
    },
    "include": {
        "type": "string",
        "description": f"comma-separated, any of {', '.join(INCLUDABLE)}",
    },
    "boxes": {
        "type": "string",
        "description": "where the things are: a JSON list with an entry for each picture, [x, y, width, height] in "
        "pixels, a list of such boxes for several things in it, or null for the whole, as in "
        "[[10, 20, 200, 150], [[0, 0, 90, 90], [95, 5, 80, 80]], null]; a box counts as a picture",
    },
    "format": {
        "type": "string",
        "enum": list(FORMATS),
        "default": FORMATS[0],
        "description": "native JSON; coco: a COCO keypoints data set, with scores; csv: DeepLabCut's table",
    },
    "landmarks": {
        "type": "string",
        "description": "a set of landmarks of the version; each picture's answer has these points too",
    },
    "every": {
        "type": "integer",
        "minimum": 1,
        "default": 1,
        "description": "of a video: the first frame and each so-many-th after it",
    },
}


def estimate_answers() -> dict[str, Any]:
    """The answer of POST /estimate in its media types beside our JSON."""
    text = {"schema": {"type": "string"}}
    table = {**text, "example": "scorer,PPL_dog_20261125T091242-12e65c,…\nbodyparts,keypoint_0,…\ncoords,x,…\n"}
    described = "the poses, in the format or the media type asked for"
    kinds = {kind: {**text, "example": _LINES} for kind in LINES}
    headers = {
        "PPL-Errors": {
            "description": "of a video of which frames, or the rest, gave no pose: JSON, how many and the first",
            "schema": {"type": "string"},
        }
    }
    return {"description": described, "headers": headers, "content": {**kinds, "text/csv": table}}


def background_answer() -> dict[str, Any]:
    """The answer of POST /estimate with ``Prefer: respond-async``."""
    return {
        "description": "with `Prefer: respond-async`: it is worked on; follow it at the address in `Location`",
        "headers": {"Location": {"schema": {"type": "string"}}, "Preference-Applied": {"schema": {"type": "string"}}},
        "model": BackgroundEstimate,
    }


def estimate_body(max_images: int) -> dict[str, Any]:
    """The form of POST /estimate."""
    properties = {
        "category": CATEGORY,
        "images": {
            "type": "array",
            "items": FILE,
            "minItems": 1,
            "maxItems": max_images,
            "description": f"JPEG, PNG, WebP, BMP or TIFF pictures, up to {max_images}",
        },
        **_ESTIMATE_FIELDS,
        "video": {**FILE, "description": "a video (MP4, MOV, AVI, MKV, WebM) instead of images"},
    }
    return form_body(properties, ["category"], one_of=["images", "video"])


def estimate_parameters() -> dict[str, Any]:
    """The same fields where they stand in the address."""
    of = "as the field of that name, which is left out then: "
    return {
        "parameters": [
            {
                "name": name,
                "in": "query",
                "description": of + field["description"],
                # a default is the form's alone
                "schema": {key: value for key, value in field.items() if key not in ("description", "default")}
                | {"examples": [_ESTIMATE_EXAMPLES[name]]},
            }
            for name, field in _ESTIMATE_FIELDS.items()
        ]
    }


def landmarks_body(max_images: int) -> dict[str, Any]:
    """The form of POST /priors/{category}/landmarks."""
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
    """The form of POST /priors/{category}/versions/import."""
    properties = {
        "file": {**FILE, "description": "the zip that an export gave"},
        "activate": {
            "type": "boolean",
            "description": "whether it becomes the active version; unless given, it does where the category has none",
        },
    }
    return form_body(properties, ["file"])


def train_body() -> dict[str, Any]:
    """The form and the JSON of POST /train-jobs: every setting of the model is a field of its own name."""
    shared = {
        "category": CATEGORY,
        "preset": {
            "type": "string",
            "enum": list(PRESETS),
            "default": DEFAULT_PRESET,
            "description": "what the settings are where not given; compact learns on a CPU, paper wants a GPU",
        },
        "activate": {
            "type": "boolean",
            "default": True,
            "description": "whether the version becomes the category's active one when the job succeeds",
        },
    }
    shared["webhook_url"] = {
        "type": "string",
        "format": "uri",
        "description": "where the job's end is told by a signed POST; a public address, unless the server allows more",
        "examples": ["https://example.org/hooks/ppl"],
    }
    shared["continue_from"] = {
        "type": "string",
        "description": "version or alias of the category, or CATEGORY@VERSION, whose weights to start from; settings "
        "not named are that version's",
        "examples": ["active"],
    }
    archive = {
        **FILE,
        "description": "zip, tar or tar.gz of JPEG, PNG, WebP, BMP or TIFF pictures, in folders or not, or of videos; "
        "or one bare video file",
    }
    labels = {
        **FILE,
        "description": f"keypoints of some of the pictures, CSV or COCO keypoints JSON, {MAX_LABELS_BYTES >> 20} MiB "
        "at most; never seen by training, only to measure what was learned",
    }
    prior_rule = "needed where keypoint_prior or connectivity_prior is predefined, refused elsewhere"
    prior = {**FILE, "description": f"a prior to start from, JSON as GET /priors/{{category}} gives it; {prior_rule}"}
    prior_from = {
        "type": "string",
        "description": f"CATEGORY or CATEGORY@VERSION whose prior to start from, instead of sending one; {prior_rule}",
        "examples": ["dog"],
    }
    folder = {
        "type": "string",
        "description": "a folder of pictures below the server's data root (PPL_DATA_ROOT); it must be there already",
        "examples": ["imports/dog"],
    }
    dataset = {
        "type": "string",
        "pattern": "^[0-9a-f]{24}$",
        "description": "id of a dataset to train on, instead of sending or naming pictures",
    }
    uploads = {"archive": archive, "dataset": dataset, "labels": labels, "prior": prior, "prior_from": prior_from}
    named = {
        "folder": folder,
        "dataset": dataset,
        "labels": {"type": "string", "description": "a CSV or JSON file of labels below the server's data root"},
        "prior": {"type": "object", "description": f"a prior as GET /priors/{{category}} gives it; {prior_rule}"},
        "prior_from": prior_from,
    }
    chosen = _settings()
    return request_body(
        {
            "multipart/form-data": object_content(
                {**shared, **uploads, **chosen}, ["category"], ["archive", "dataset"]
            ),
            "application/json": {
                **object_content({**shared, **named, **chosen}, ["category"], ["folder", "dataset"]),
                "examples": {
                    "folder": {
                        "summary": "pictures in imports/dog below the data root",
                        "description": "first make the folder imports/dog below the server's data root, and put "
                        "pictures into it",
                        "value": {"category": "dog", "folder": "imports/dog", "preset": "compact", "steps": 2000},
                    }
                },
            },
        }
    )


def install(app: FastAPI, *, keys_needed: bool) -> None:
    """Let the application describe itself with our errors and keys, and its own address in the examples."""
    app.openapi = _described(app, keys_needed)  # type: ignore[method-assign]

    async def openapi(request: Request) -> Response:
        text = json.dumps(app.openapi(), ensure_ascii=False)
        address = str(request.base_url).rstrip("/")
        # it comes from the client and goes into commands to be pasted
        if _ADDRESS.fullmatch(address):
            text = text.replace(_EXAMPLE_ADDRESS, address)
        return Response(text, media_type="application/json")

    assert app.openapi_url is not None
    # before the framework's own
    app.router.routes.insert(0, Route(app.openapi_url, openapi, include_in_schema=False))


def package_version() -> str:
    """Of the installed distribution."""
    return version("pose-prior-learner")


def _described(app: FastAPI, keys_needed: bool) -> Callable[[], dict[str, Any]]:
    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=TITLE, version=app.version, description=DESCRIPTION, tags=TAGS, routes=app.routes
            )
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            schemas["Problem"] = Problem.model_json_schema()
            _add_security(schema, keys_needed)
            for operation in _operations(schema):
                refused = operation["responses"].get("422")
                if refused and "application/json" in refused.get("content", {}):
                    refused["content"] = _problem_content()
                operation["responses"]["default"] = {"description": "Any error", "content": _problem_content()}
            for path, operations in schema["paths"].items():
                for method in operations:
                    openapi_examples.complete(schema, path, method.upper())
            app.openapi_schema = schema
        return app.openapi_schema

    return openapi


def _add_security(schema: dict[str, Any], keys_needed: bool) -> None:
    """Which scope of a key each operation needs; beside no key at all where the gateway asks for none."""
    schema["components"]["securitySchemes"] = {
        "ApiKey": {"type": "http", "scheme": "bearer", "description": "an API key, as `ppl keys create` shows it"}
    }
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            needed = needed_scope(method.upper(), path)
            if needed is None:
                continue
            operation["security"] = [{"ApiKey": [str(needed)]}, *([] if keys_needed else [{}])]


def _operations(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in schema["paths"].values() for operation in path.values()]


def _problem_content() -> dict[str, Any]:
    return {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def _settings() -> dict[str, dict[str, Any]]:
    """Every setting of the model as a JSON schema, with its range and its default in each preset."""
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
