"""/estimates: estimates in the background."""

from __future__ import annotations

import os
from functools import partial
from itertools import chain
from typing import BinaryIO

from fastapi import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from service.access.guard import api_key_of
from service.access.keys import Scope
from service.contract.errors import Conflict, Forbidden, UnknownEstimate
from service.estimates.formats.registry import FORMATS
from service.estimates.schemas import BackgroundEstimate, EstimatePage, EstimateStatus, EstimateWithResult
from service.gateway.gateway import CurrentGateway, Gateway, Limit, new_router
from service.http.problems import responses

router = new_router("poses")

_RETRY_S = 2.0
_CHUNK_BYTES = 2**18


@router.get("/estimates", summary="List estimates")
async def get_estimates(gateway: CurrentGateway, limit: Limit = 50, cursor: str | None = None) -> EstimatePage:
    """List the stored background estimates, the newest first."""
    return await gateway.threads.io(gateway.estimates.page, limit, cursor)


@router.get(
    "/estimates/{estimate_id}",
    summary="Follow an estimate",
    response_model=EstimateWithResult,
    response_model_exclude_unset=True,
)
async def get_estimate(gateway: CurrentGateway, estimate_id: str) -> Response:
    """Return the status of an estimate.

    Once it succeeded, `result` has the poses as from `POST /estimate`, with `errors` for the pictures without a pose.
    For other formats it has only `errors` (and `outliers`), and the poses are at `result_url`.
    Results are kept for a day.
    """
    return await gateway.threads.io(_document, gateway, estimate_id)


@router.get(
    "/estimates/{estimate_id}/result",
    summary="The poses of an estimate",
    response_class=Response,
    responses={
        200: {
            "description": "the poses, in the requested format",
            "content": {"application/json": {"schema": {"type": "object"}}, "text/csv": {"schema": {"type": "string"}}},
        },
        **responses(409),
    },
)
async def get_result(gateway: CurrentGateway, estimate_id: str) -> Response:
    """Return what `POST /estimate` would have answered, once the estimate succeeded."""
    shown = await _succeeded(gateway, estimate_id)
    file = await gateway.threads.io(_open, gateway, estimate_id, "result")
    return _FileResponse(file, FORMATS[shown.format].media_type)


@router.get(
    "/estimates/{estimate_id}/raw",
    summary="The poses without smoothing",
    response_class=Response,
    responses={200: {"description": "the poses, in the requested format"}, **responses(409)},
)
async def get_raw(gateway: CurrentGateway, estimate_id: str) -> Response:
    """Return the poses of a smoothed video as the model found them, for the formats coco and csv.

    The formats native and jsonl have both in one result.
    """
    shown = await _succeeded(gateway, estimate_id)
    if shown.raw_url is None:
        raise Conflict(
            f"estimate {estimate_id} has no poses beside its result: it was not smoothed, or its format "
            f"{shown.format} has raw and smoothed keypoints together; see its result"
        )
    file = await gateway.threads.io(_open, gateway, estimate_id, "raw")
    return _FileResponse(file, FORMATS[shown.format].media_type)


@router.get(
    "/estimates/{estimate_id}/overlay",
    summary="The video with its poses drawn",
    response_class=Response,
    responses={
        200: {"description": "the video", "content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}}},
        **responses(409),
    },
)
async def get_overlay(gateway: CurrentGateway, estimate_id: str) -> Response:
    """Return the video of an estimate with `include=overlay`: poses, links and trails drawn, with its sound.

    It is H.264 in MP4, plays in browsers, and ranges of it can be requested.
    """
    shown = await _succeeded(gateway, estimate_id)
    if shown.overlay_url is None:
        raise Conflict(
            f"estimate {estimate_id} has no drawn video; send a video with include=overlay and Prefer: respond-async"
        )
    (await gateway.threads.io(_open, gateway, estimate_id, "overlay")).close()
    return FileResponse(gateway.estimates.path(estimate_id, "overlay"), media_type="video/mp4")


async def _succeeded(gateway: Gateway, estimate_id: str) -> BackgroundEstimate:
    """Return an estimate that has results. Raises Conflict, UnknownEstimate."""
    shown = (await gateway.threads.io(gateway.estimates.record, estimate_id)).shown
    if shown.status is not EstimateStatus.SUCCEEDED:
        retry_s = None if shown.status.ended else _RETRY_S
        raise Conflict(f"estimate {estimate_id} is {shown.status}; it has no result", retry_after_s=retry_s)
    return shown


@router.post("/estimates/{estimate_id}/cancel", summary="Cancel an estimate", responses=responses(409))
async def cancel_estimate(request: Request, gateway: CurrentGateway, estimate_id: str) -> BackgroundEstimate:
    """Cancel an estimate; a running one stops a moment later. A key with only the scope read may cancel its own."""
    await _check_owner(request, gateway, estimate_id)
    return (await gateway.threads.io(gateway.estimates.cancel, estimate_id)).shown


@router.delete("/estimates/{estimate_id}", status_code=204, summary="Delete an estimate", responses=responses(409))
async def delete_estimate(request: Request, gateway: CurrentGateway, estimate_id: str) -> None:
    """Delete an estimate that ended, with its result. A key with only the scope read may delete its own."""
    await _check_owner(request, gateway, estimate_id)
    await gateway.threads.io(gateway.estimates.remove, estimate_id)


async def _check_owner(request: Request, gateway: Gateway, estimate_id: str) -> None:
    """Raise Forbidden if the key may only read and another key created the estimate."""
    key = api_key_of(request.scope)
    if key is None or key.allows(Scope.TRAIN):
        return
    shown = (await gateway.threads.io(gateway.estimates.record, estimate_id)).shown
    if shown.created_by != key.id:
        raise Forbidden(
            f"estimate {estimate_id} was created with another key; {key.id} ({key.name}) may only read it, as it lacks "
            "the scope train",
            extra={"needed_scope": str(Scope.TRAIN)},
        )


def _document(gateway: Gateway, estimate_id: str) -> Response:
    shown = gateway.estimates.record(estimate_id).shown
    text = shown.model_dump_json().encode()
    if shown.status is EstimateStatus.SUCCEEDED:
        native = shown.format == "native"
        name = "result" if native else "errors"
        if native or gateway.estimates.file(estimate_id, name).exists():  # an earlier release did not store errors
            head = text[:-1] + (b', "result": ' if native else b', "errors": ')
            return _FileResponse(_open(gateway, estimate_id, name), "application/json", head, b"}")
    return Response(text, media_type="application/json")


def _open(gateway: Gateway, estimate_id: str, name: str) -> BinaryIO:
    try:
        return gateway.estimates.file(estimate_id, name).open("rb")
    except FileNotFoundError as error:
        raise UnknownEstimate(f"estimate {estimate_id!r} was deleted meanwhile") from error


class _FileResponse(StreamingResponse):
    """A file between a head and a tail, sent in chunks, as it may be long. Closes the file."""

    def __init__(self, file: BinaryIO, media_type: str, head: bytes = b"", tail: bytes = b"") -> None:
        size = len(head) + os.fstat(file.fileno()).st_size + len(tail)
        chunks = chain((head,), iter(partial(file.read, _CHUNK_BYTES), b""), (tail,))
        super().__init__(chunks, media_type=media_type, headers={"Content-Length": str(size)})
        self._file = file

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        with self._file:  # closed even if the client disconnects
            await super().__call__(scope, receive, send)
