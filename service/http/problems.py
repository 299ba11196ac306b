"""Errors as problem documents (RFC 9457), whoever raised them: our code, FastAPI, or the queue's server."""

from __future__ import annotations

import http
import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match

from service.contract.errors import BadRequest, ErrorCode, PPLError, RedisUnavailable, Unavailable
from service.runtime.redis_clients import QUEUE_ERRORS

from .request_ids import HEADER as REQUEST_ID
from .request_ids import current_request_id

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_RETRY_S = 2.0


class BadField(BadRequest, status=422):
    """A field of a request that is missing, unknown or not what it must be; ``extra`` names it."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(detail, extra={"field": field})


class UnsupportedMedia(BadRequest, status=415):
    """A body of another media type than the operation reads."""


class SlowBody(BadRequest, status=408):
    """A body that does not arrive."""


class StorageFull(PPLError, code=ErrorCode.DISK_FULL, status=507):  # noqa: N818 - as in contract/errors.py
    """No room for an upload under the data root."""


class ProblemResponse(JSONResponse):
    """JSON in ASCII: what came is quoted as it came, also where it can't be written as UTF-8 (lone surrogates)."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def problem(
    status: int,
    code: str,
    title: str,
    detail: str,
    extra: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """A problem document as a response; ``extra`` members never replace the standard ones."""
    document = {"type": f"urn:ppl:problem:{code}", "title": title, "status": status, "detail": detail, "code": code}
    request_id = current_request_id()
    if request_id:
        document["request_id"] = request_id
        headers = {**(headers or {}), REQUEST_ID: request_id}  # a fault is answered outside of what adds it elsewhere
    return ProblemResponse({**(extra or {}), **document}, status, headers=headers, media_type=MEDIA_TYPE)


def document_of(error: PPLError) -> dict[str, Any]:
    """One of our errors as a problem document, where it stands among good answers."""
    facts = {"title": error.title, "status": error.status, "detail": error.detail, "code": str(error.code)}
    return {**error.extra, "type": f"urn:ppl:problem:{error.code}", **facts}


def problem_of(error: PPLError) -> JSONResponse:
    """One of our errors as a response."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status == http.HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="ppl"'
    return problem(error.status, error.code, error.title, error.detail, error.extra, headers)


def queue_problem() -> RedisUnavailable:
    """The queue's server does not answer: the same words wherever it is found out."""
    return RedisUnavailable(
        "the queue's server (Redis) does not answer; nothing was lost, send the request again in a moment",
        retry_after_s=_RETRY_S,
    )


_SAYS_WHEN = (429, 503, 504)
_RETRY_AFTER = {"description": "seconds after which it may be sent again", "schema": {"type": "integer"}}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The declaration of problem responses for an operation's documentation."""
    return {
        status: {
            "description": http.HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            **({"headers": {"Retry-After": _RETRY_AFTER}} if status in _SAYS_WHEN else {}),
        }
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Make every error of an application a problem document."""
    app.add_exception_handler(PPLError, _on_ppl_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    for kind in QUEUE_ERRORS:
        app.add_exception_handler(kind, _on_queue_error)
    app.add_exception_handler(Exception, _on_fault)


async def _on_ppl_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PPLError)
    if error.status >= 500 and not isinstance(error, Unavailable):
        log.error("%s %s: %s", request.method, request.url.path, error.detail, exc_info=error)
    return problem_of(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = http.HTTPStatus(error.status_code)
    details = {404: f"there is nothing at {request.url.path[:200]}; /docs lists the operations"}
    code = "_".join(status.phrase.lower().replace("-", " ").split())
    detail = details.get(status, str(error.detail))
    headers = dict(error.headers or {})
    if status == http.HTTPStatus.METHOD_NOT_ALLOWED:  # the framework names those of one route only
        headers["Allow"] = ", ".join(sorted(_methods_at(request)))
        detail = f"{request.method} is not possible at {request.url.path[:200]}; {headers['Allow']} is"
    return problem(status, code, status.phrase.capitalize(), detail, headers=headers)


def _methods_at(request: Request) -> set[str]:
    """What can be done at a request's address."""
    path = {"type": "http", "path": request.scope["path"], "root_path": request.scope.get("root_path", "")}
    found = {
        method
        for method in ("GET", "PUT", "POST", "DELETE", "PATCH")
        for route in request.app.routes
        if route.matches({**path, "method": method})[0] is Match.FULL
    }
    found = found or {"GET"}  # a file of those that are served as they are
    return found | ({"HEAD"} if "GET" in found else set())


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if isinstance(error.body, bytes) and not (media_type == "application/json" or media_type.endswith("+json")):
        told = f"the body is {media_type[:80] or 'of no media type'}; send application/json"
        return problem(415, ErrorCode.BAD_REQUEST, "Bad request", told)
    found = [_fault(fault) for fault in error.errors()]
    faults = [fault for fault, _ in found]
    detail = "; ".join(text for _, text in found)
    return problem(422, ErrorCode.BAD_REQUEST, "Bad request", detail, {"errors": faults})


def _fault(fault: dict[str, Any]) -> tuple[dict[str, str], str]:
    """What is wrong with a field, as a member of the problem and in words."""
    field, said = _name_of(fault["loc"]), str(fault["msg"])
    if fault["type"] == "json_invalid":
        said = f"{fault['ctx']['error']} at character {fault['loc'][-1]}"
        return {"field": "body", "detail": said}, f"the body is not JSON: {said}"
    if fault["type"] == "missing":
        return {"field": field, "detail": said}, f"{field} is missing"
    given = str(fault.get("input"))[:200]
    return {"field": field, "detail": said, "given": given}, f"{field} is {given!r}: {said}"


def _name_of(place: Sequence[str | int]) -> str:
    """``names[0]`` for an entry of a list; the first word says only where the request holds it."""
    first, *rest = place[1:] or place
    return str(first) + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in rest)


async def _on_queue_error(request: Request, error: Exception) -> Response:
    log.warning("%s %s: Redis: %s", request.method, request.url.path, error)
    return problem_of(queue_problem())


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _on_fault(request: Request, error: Exception) -> Response:
    # the server logs the trace; the client gets none of it
    return problem(
        500, ErrorCode.INTERNAL, "Internal error", "an unexpected fault of the server; its log says more about it"
    )
