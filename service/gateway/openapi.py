"""The OpenAPI document: title, tags, security, examples, and errors as problem documents."""

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
`code`. The detail says what came, what was expected and what to do; the code is for programs.
Lists come in pages: pass `next_cursor` as `cursor` until it is null.
"""

TAGS = [
    {"name": "training", "description": "Jobs that learn a category's prior from pictures."},
    {"name": "datasets", "description": "Pictures that are kept, looked at, and trained from as often as wanted."},
    {"name": "poses", "description": "Keypoints and links in pictures."},
    {"name": "priors", "description": "What has been learned. Served from disk, also while no worker runs."},
    {
        "name": "landmarks",
        "description": "Points of your own, computed from keypoints after a few labelled pictures.",
    },
    {"name": "versions", "description": "Aliases that move from version to version, and versions that go and come."},
    {"name": "operation", "description": "For operators of the service."},
]


def install(app: FastAPI, *, keys_needed: bool) -> None:
    """Serve the OpenAPI document with our errors and keys, and the server's address in its examples."""
    app.openapi = _make_openapi(app, keys_needed)  # type: ignore[method-assign]

    async def openapi(request: Request) -> Response:
        text = json.dumps(app.openapi(), ensure_ascii=False)
        address = str(request.base_url).rstrip("/")
        # the client sends it, and users paste the commands that contain it
        if _ADDRESS.fullmatch(address):
            text = text.replace(_EXAMPLE_ADDRESS, address)
        return Response(text, media_type="application/json")

    assert app.openapi_url is not None
    # before the framework's own
    app.router.routes.insert(0, Route(app.openapi_url, openapi, include_in_schema=False))


def package_version() -> str:
    """Return the version of the installed distribution."""
    return version("pose-prior-learner")


def _make_openapi(app: FastAPI, keys_needed: bool) -> Callable[[], dict[str, Any]]:
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
    """Declare the scope that each operation needs; no key is an alternative where the gateway requires none."""
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
