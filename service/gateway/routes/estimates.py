"""/estimates: those that are worked on in the background."""

from __future__ import annotations

import json
import os
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from service.access.guard import api_key_of
from service.access.keys import Scope
from service.contract.errors import Conflict, Forbidden, UnknownEstimate
from service.contract.jobs.store import MAX_PAGE
from service.estimates.formats.registry import MEDIA_TYPES
from service.estimates.schemas import BackgroundEstimate, EstimatePage, EstimateStatus, EstimateWithResult
from service.gateway.gateway import Gateway, gateway_of
from service.http.problems import responses

router = APIRouter(tags=["poses"])

_RETRY_S = 2.0
_PIECE_BYTES = 2**18


@router.get("/estimates", summary="List estimates", response_model=EstimatePage, responses=responses(400, 422))
async def get_estimates(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="estimates in a page")] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
) -> EstimatePage:
    """The estimates in the background that are still kept, the newest first."""
    gateway = gateway_of(request)
    return await gateway.threads.io(gateway.estimates.page, limit, cursor)


@router.get(
    "/estimates/{estimate_id}",
    summary="Follow an estimate",
    response_model=EstimateWithResult,
    response_model_exclude_unset=True,
    responses=responses(404),
)
async def get_estimate(request: Request, estimate_id: str) -> Response:
    """The estimate as it stands; once it succeeded, `result` holds the poses as `POST /estimate` gives them, with
    `errors` of the pictures that gave none. Of the formats coco and csv it holds `errors` alone; the poses are at
    `result_url`. It is kept for a day.
    """
    gateway = gateway_of(request)
    return await gateway.threads.io(_document, gateway, estimate_id)


@router.get(
    "/estimates/{estimate_id}/result",
    summary="The poses of an estimate",
    response_class=Response,
    responses={
        200: {
            "description": "the poses, in the format asked for",
            "content": {"application/json": {"schema": {"type": "object"}}, "text/csv": {"schema": {"type": "string"}}},
        },
        **responses(404, 409),
    },
)
async def get_result(request: Request, estimate_id: str) -> Response:
    """What `POST /estimate` would have answered, in its format; there once the estimate succeeded."""
    gateway = gateway_of(request)
    shown = (await gateway.threads.io(gateway.estimates.record, estimate_id)).shown
    if shown.status is not EstimateStatus.SUCCEEDED:
        again_s = None if shown.status.ended else _RETRY_S
        raise Conflict(f"estimate {estimate_id} is {shown.status}; it has no result", retry_after_s=again_s)
    file = await gateway.threads.io(_open, gateway.estimates.result(estimate_id), estimate_id)
    return _FileResponse(file, MEDIA_TYPES[shown.format])


@router.post(
    "/estimates/{estimate_id}/cancel",
    summary="Stop an estimate",
    response_model=BackgroundEstimate,
    responses=responses(404, 409),
)
async def cancel_estimate(request: Request, estimate_id: str) -> BackgroundEstimate:
    """Stops an estimate for good. One that is worked on stops a moment later. A key of the scope read stops its own."""
    gateway = gateway_of(request)
    await _check_owner(request, gateway, estimate_id)
    return (await gateway.threads.io(gateway.estimates.cancel, estimate_id)).shown


@router.delete("/estimates/{estimate_id}", status_code=204, summary="Forget an estimate", responses=responses(404, 409))
async def delete_estimate(request: Request, estimate_id: str) -> None:
    """Removes an estimate that ended, with its result. A key of the scope read removes its own."""
    gateway = gateway_of(request)
    await _check_owner(request, gateway, estimate_id)
    await gateway.threads.io(gateway.estimates.remove, estimate_id)


async def _check_owner(request: Request, gateway: Gateway, estimate_id: str) -> None:
    """Raises Forbidden where a key that may only read would stop or remove what another one asked for."""
    key = api_key_of(request.scope)
    if key is None or key.may(Scope.TRAIN):
        return
    shown = (await gateway.threads.io(gateway.estimates.record, estimate_id)).shown
    if shown.created_by != key.id:
        raise Forbidden(
            f"estimate {estimate_id} was asked for with another key; {key.id} ({key.name}) may look at it only, as it "
            "lacks the scope train",
            extra={"needed_scope": str(Scope.TRAIN)},
        )


def _document(gateway: Gateway, estimate_id: str) -> Response:
    shown = gateway.estimates.record(estimate_id).shown
    document: dict[str, Any] = shown.model_dump(mode="json")
    text = json.dumps(document).encode()
    if shown.status is EstimateStatus.SUCCEEDED:
        native = shown.format == "native"
        path = gateway.estimates.result(estimate_id) if native else gateway.estimates.errors(estimate_id)
        if native or path.exists():  # an earlier release did not write errors down
            before = text[:-1] + (b', "result": ' if native else b', "errors": ')
            return _FileResponse(_open(path, estimate_id), "application/json", before, b"}")
    return Response(text, media_type="application/json")


def _open(path: Path, estimate_id: str) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError as error:  # deleted meanwhile
        raise UnknownEstimate(f"no estimate {estimate_id!r}; it was deleted meanwhile") from error


class _FileResponse(StreamingResponse):
    """A file as it lies there, between other bytes; piece by piece, as it may be long. Closes it."""

    def __init__(self, file: BinaryIO, media_type: str, before: bytes = b"", after: bytes = b"") -> None:
        size = len(before) + os.fstat(file.fileno()).st_size + len(after)
        pieces = chain((before,), iter(partial(file.read, _PIECE_BYTES), b""), (after,))
        super().__init__(pieces, media_type=media_type, headers={"Content-Length": str(size)})
        self._file = file

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        with self._file:  # also where the client goes away first
            await super().__call__(scope, receive, send)
