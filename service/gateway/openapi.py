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

from service.access.guard import needed_scope
from service.contract.messages import MAX_REFINE_STEPS
from service.estimates.formats.json_lines import MEDIA_TYPES as LINES
from service.estimates.formats.registry import FORMATS
from service.estimates.pictures import INCLUDABLE
from service.estimates.schemas import BackgroundEstimate
from service.http.openapi import CATEGORY, FILE, form_body
from service.http.schemas import Problem

from . import openapi_examples

_EXAMPLE_ADDRESS = "http://127.0.0.1:8000"
_ADDRESS = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]{1,255}(/[A-Za-z0-9._/-]{0,255})?")
TITLE = "Pose Prior Learner"

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
