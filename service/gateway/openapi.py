"""The OpenAPI document: title, tags, security, examples, and errors as problem documents."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.routing import Route

from service.access.guard import needed_scope
from service.http.problems import responses
from service.http.schemas import Problem

from .openapi_examples import add_examples

_EXAMPLE_ADDRESS = "http://127.0.0.1:8000"
_ADDRESS = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]{1,255}(/[A-Za-z0-9._/-]{0,255})?")
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


def install(app: FastAPI, *, needs_keys: bool) -> None:
    """Serve the OpenAPI document with our errors and keys, and the server's address in its examples."""
    describe = app.openapi
    app.openapi = cache(lambda: _complete(describe(), needs_keys))  # type: ignore[method-assign]

    async def openapi(request: Request) -> Response:
        prefix = request.scope.get("root_path")
        servers = {"servers": [{"url": prefix}]} if prefix else {}
        text = json.dumps({**app.openapi(), **servers}, ensure_ascii=False)
        address = str(request.base_url).rstrip("/")
        # the client sends it, and users paste the commands that contain it
        if _ADDRESS.fullmatch(address):
            text = text.replace(_EXAMPLE_ADDRESS, address)
        return Response(text, media_type="application/json")

    # before the framework's own
    app.router.routes.insert(0, Route("/openapi.json", openapi, include_in_schema=False))


def _complete(document: dict[str, Any], needs_keys: bool) -> dict[str, Any]:
    """Add the errors, examples and scopes of all operations to FastAPI's document."""
    components = document["components"]
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    components["schemas"]["Problem"] = Problem.model_json_schema()
    components["securitySchemes"] = {
        "ApiKey": {"type": "http", "scheme": "bearer", "description": "an API key, as `ppl keys create` shows it"}
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            needed = needed_scope(method.upper(), path)
            if needed is not None:  # no key is an alternative where the gateway requires none
                operation["security"] = [{"ApiKey": [str(needed)]}, *([] if needs_keys else [{}])]
            operation["responses"] |= responses(*_common_errors(path, operation))
            operation["responses"]["default"] = {**responses(500)["500"], "description": "Any error"}
            add_examples(operation, path, method.upper())
    return document


def _common_errors(path: str, operation: dict[str, Any]) -> set[int]:
    """Return the statuses of errors that follow from a path and the parts of its requests."""
    statuses = {500}
    if "security" in operation:
        statuses |= {401, 403, 429}
    if "requestBody" in operation:
        statuses |= {400, 408, 413, 415, 422}
    parameters = {parameter["name"] for parameter in operation.get("parameters", ())}
    if parameters:
        statuses.add(422)
    if "{" in path:
        statuses.add(404)
    if parameters & {"category", "cursor"}:
        statuses.add(400)
    if path.startswith("/train-jobs"):
        statuses.add(503)
    return statuses
