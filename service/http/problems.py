"""Errors as problem documents (RFC 9457), raised by our code, by FastAPI or by a broken connection to Redis."""

from __future__ import annotations

import http
import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from asgi_correlation_id import correlation_id
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match

from service.contract.durable_files import is_disk_full
from service.contract.errors import BadRequest, PPLError, RedisUnavailable, Unavailable, WorkerUnavailable
from service.runtime.redis_clients import QUEUE_ERRORS

log = logging.getLogger(__name__)

REQUEST_ID = "X-Request-ID"
MEDIA_TYPE = "application/problem+json"
_RETRY_S = 2.0
_WITH_RETRY_AFTER = (429, 503, 504)
_RETRY_AFTER = {"description": "seconds after which to send the request again", "schema": {"type": "integer"}}


class BadField(BadRequest, status=422):
    """A field of a request that is missing, unknown or has a wrong value; ``extra`` has its name."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(detail, extra={"field": field})


class UnsupportedMedia(BadRequest, status=415):
    """A body of a media type that the operation does not read."""


class SlowBody(BadRequest, status=408):
    """A body that does not arrive in time."""


class StorageFull(PPLError, code="disk_full", status=507):  # noqa: N818 - as in contract/errors.py
    """The disk with the data root is full, or the quota on it is used up."""


def problem(
    status: int,
    code: str,
    title: str,
    detail: str,
    extra: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return a problem document as a response; ``extra`` members never replace the standard ones."""
    document = {"type": f"urn:ppl:problem:{code}", "title": title, "status": status, "detail": detail, "code": code}
    if request_id := correlation_id.get():
        document["request_id"] = request_id
    # in ASCII, so that it can repeat input that is not valid UTF-8 (lone surrogates)
    text = json.dumps({**(extra or {}), **document}, allow_nan=False, separators=(",", ":"))
    return Response(text, status, headers=headers, media_type=MEDIA_TYPE)


def problem_document(error: PPLError) -> dict[str, Any]:
    """Return an error as a problem document that is part of a larger response."""
    members = {"title": error.title, "status": error.status, "detail": error.detail, "code": str(error.code)}
    return {**error.extra, "type": f"urn:ppl:problem:{error.code}", **members}


def problem_response(error: PPLError) -> Response:
    """Return an error as a response."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status == http.HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="ppl"'
    return problem(error.status, error.code, error.title, error.detail, error.extra, headers)


def redis_unavailable() -> RedisUnavailable:
    """Return the error of a request that needs Redis while Redis does not answer."""
    return RedisUnavailable(
        "the queue's server (Redis) does not answer; nothing was lost, send the request again in a moment",
        retry_after_s=_RETRY_S,
    )


def no_inference_worker(reason: str) -> WorkerUnavailable:
    """Return the error of an estimate that no worker can answer; ``reason`` continues its first sentence."""
    return WorkerUnavailable(
        f"no inference worker is running, and {reason}. "
        "Start one (`python -m worker inference`; `ppl up` starts it by itself)",
        retry_after_s=_RETRY_S,
    )


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Declare problem responses in the documentation of an operation."""
    return {
        str(status): {
            "description": http.HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            **({"headers": {"Retry-After": _RETRY_AFTER}} if status in _WITH_RETRY_AFTER else {}),
        }
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Answer every error of an application with a problem document."""
    app.add_exception_handler(PPLError, _on_ppl_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(OSError, _on_os_error)
    for kind in QUEUE_ERRORS:
        app.add_exception_handler(kind, _on_queue_error)
    app.add_exception_handler(Exception, _on_unexpected_error)


async def _on_ppl_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PPLError)
    if error.status >= 500 and not isinstance(error, (Unavailable, StorageFull)):
        log.error("%s %s: %s", request.method, request.url.path, error.detail, exc_info=error)
    return problem_response(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = http.HTTPStatus(error.status_code)
    code = "_".join(status.phrase.lower().replace("-", " ").split())
    detail = str(error.detail)
    headers = dict(error.headers or {})
    path = request.url.path[:200]
    if status == http.HTTPStatus.NOT_FOUND:
        detail = f"there is nothing at {path}; {request.scope.get('root_path', '')}/docs lists the operations"
    elif status == http.HTTPStatus.METHOD_NOT_ALLOWED:  # the framework lists the methods of one route only
        headers["Allow"] = ", ".join(sorted(_allowed_methods(request)))
        detail = f"{request.method} is not possible at {path}; use {headers['Allow']}"
    return problem(status, code, status.phrase.capitalize(), detail, headers=headers)


def _allowed_methods(request: Request) -> set[str]:
    path = {"type": "http", "path": request.scope["path"], "root_path": request.scope.get("root_path", "")}
    found = {
        method
        for method in ("GET", "PUT", "POST", "DELETE", "PATCH")
        for route in request.app.routes
        if route.matches({**path, "method": method})[0] is Match.FULL
    }
    found = found or {"GET"}  # a static file
    return found | ({"HEAD"} if "GET" in found else set())


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if isinstance(error.body, bytes) and not (media_type == "application/json" or media_type.endswith("+json")):
        return problem_response(
            UnsupportedMedia(f"the body is {media_type[:80] or 'of no media type'}; send application/json")
        )
    faults, texts = zip(*map(_describe_fault, error.errors()), strict=True)
    return problem(422, BadRequest.code, BadRequest.title, "; ".join(texts), {"errors": faults})


def _describe_fault(fault: dict[str, Any]) -> tuple[dict[str, str], str]:
    """Return a validation error as a member of the problem document and as text."""
    field, message = _field_name(fault["loc"]), str(fault["msg"])
    if fault["type"] == "json_invalid":
        message = f"{fault['ctx']['error']} at character {fault['loc'][-1]}"
        return {"field": "body", "detail": message}, f"the body is not JSON: {message}"
    if fault["type"] == "missing":
        return {"field": field, "detail": message}, f"{field} is missing"
    given = str(fault.get("input"))[:200]
    return {"field": field, "detail": message, "given": given}, f"{field} is {given!r}: {message}"


def _field_name(location: Sequence[str | int]) -> str:
    """Return ``names[0]`` for ``("body", "names", 0)``: the first item only names the part of the request."""
    first, *rest = location[1:] or location
    return str(first) + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in rest)


async def _on_queue_error(request: Request, error: Exception) -> Response:
    log.warning("%s %s: Redis does not answer: %s", request.method, request.url.path, error)
    return problem_response(redis_unavailable())


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # never arrives: the client has disconnected


async def _on_os_error(request: Request, error: Exception) -> Response:
    if is_disk_full(error):
        log.error("%s %s: the disk is full: %s", request.method, request.url.path, error)
        return problem_response(disk_full())
    raise error


def disk_full() -> StorageFull:
    """Return the error of a request that needs room on a full disk."""
    return StorageFull("the server has no room on its disk; its operator must free some")


async def _on_unexpected_error(request: Request, error: Exception) -> Response:
    # the server logs the traceback; this handler runs outside of the middleware that adds the header
    shown = disk_full() if is_disk_full(error) else PPLError("an unexpected error of the server; its log says more")
    response = problem_response(shown)
    if request_id := correlation_id.get():
        response.headers[REQUEST_ID] = request_id
    return response
