"""Middleware for bodies: limits on their size and pace, and responses to HEAD without one."""

from __future__ import annotations

import asyncio
import re
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.contract.errors import BodyTooLarge, PPLError
from service.contract.jobs.files import MAX_LABELS_BYTES, MAX_PRIOR_BYTES
from service.runtime.concurrency import cancel_tasks
from service.runtime.settings import Settings

from .headers import media_type, responds_async
from .problems import SlowBody, problem_response

STALL_S = 30.0  # how long a body may pause

# the parts of a multipart form beside its files
_FORM_BYTES = 2**20
# the event loop parses JSON in one piece, so it must be short; a folder, some settings and a prior are
_JSON_BYTES = 256 * 2**10
_IMPORT = re.compile(r"/priors/[^/]+/versions/import")
_LANDMARKS = re.compile(r"/priors/[^/]+/landmarks")
_BODY_BYTES = "ppl.body_bytes"


def body_bytes(scope: Scope) -> int:
    """Return the declared length of a request's body, or the limit on it where none is declared."""
    size: int = scope[_BODY_BYTES]
    return size


def body_limit(scope: Scope, settings: Settings) -> int:
    """Return how long the body of a request may be: long only for a form that uploads files, short for JSON."""
    headers, path = Headers(scope=scope), scope["path"]
    kind = media_type(headers)
    if kind == "application/json":
        return min(_JSON_BYTES, settings.max_body_bytes)
    if kind == "multipart/form-data":
        if path == "/estimate" and responds_async(headers):
            return settings.background_body_bytes
        if path in ("/train-jobs", "/datasets"):
            return settings.archive_max_bytes + MAX_LABELS_BYTES + MAX_PRIOR_BYTES + _FORM_BYTES
        if _IMPORT.fullmatch(path):
            return settings.version_max_bytes + _FORM_BYTES
        if _LANDMARKS.fullmatch(path):
            return min(settings.landmarks_max_bytes, settings.max_pending_bytes)
    return settings.max_body_bytes


class BodyLimit:
    """Refuse bodies that are too long, at once where the length is declared, and bodies that stall or arrive slowly.

    A slow body would hold its part of the disk and its place in the queue. The client may make the server wait for
    STALL_S; every byte earns more time at `slowest_body_bytes_per_s`, up to STALL_S again (0: no pace is required).
    The time that the server takes to store what came does not count.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._slowest = settings.slowest_body_bytes_per_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = body_limit(scope, self._settings)
        declared = Headers(scope=scope).get("content-length", "")
        scope[_BODY_BYTES] = int(declared) if declared.isdigit() else limit
        if scope[_BODY_BYTES] > limit:
            await problem_response(_too_large(limit, f"{scope[_BODY_BYTES]} bytes"))(scope, receive, send)
            return
        received, more = 0, True
        spare_s = STALL_S
        error: PPLError | None = None
        started = refused = False

        async def limited_receive() -> Message:
            nonlocal received, more, spare_s, error
            if not more:  # only the client's disconnect can come now
                return await receive()
            began = time.monotonic()
            try:
                async with asyncio.timeout(spare_s):
                    message = await receive()
            except TimeoutError:
                error = self._too_slow(received, time.monotonic() - began)
                raise error from None
            waited_s = time.monotonic() - began
            more = message.get("more_body", False)
            size = len(message.get("body", b""))
            received += size
            if received > limit:
                error = _too_large(limit, f"more than {limit} bytes")
                raise error
            if self._slowest:
                spare_s = min(STALL_S, max(0.0, spare_s - waited_s) + size / self._slowest)
            return message

        async def send_or_refuse(message: Message) -> None:
            """Replace a response to the raised error, which the application may take for a malformed form."""
            nonlocal started, refused
            if error is None or started:
                started = True
                await send(message)
            elif not refused:
                refused = True
                response = problem_response(error)
                if isinstance(error, SlowBody):  # do not read the rest of the body
                    response.headers["connection"] = "close"
                await response(scope, receive, send)

        await self._app(scope, limited_receive, send_or_refuse)

    def _too_slow(self, received: int, paused_s: float) -> SlowBody:
        if paused_s > 0.9 * STALL_S or not self._slowest:
            return SlowBody(f"nothing of the body came for {paused_s:.0f} s; send it without a pause")
        return SlowBody(
            f"the body came too slowly: {received} bytes, then nothing for {paused_s:.1f} s; after {STALL_S:g} s of "
            f"waiting at least {self._slowest:.10g} bytes a second must come: send it over a faster connection"
        )


def _too_large(limit: int, actual: str) -> BodyTooLarge:
    return BodyTooLarge(f"the request has {actual} and may have {limit}; send less at once")


class HeadAsGet:
    """Answer HEAD as GET, without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        answered = asyncio.Event()

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                answered.set()

        async def receive_until_answered() -> Message:
            tasks = asyncio.ensure_future(receive()), asyncio.ensure_future(answered.wait())
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                # the disconnect ends a stream, which would go on although its body is not sent
                return {"type": "http.disconnect"} if answered.is_set() else tasks[0].result()
            finally:
                await cancel_tasks(tasks)

        get_scope = {**scope, "method": "GET"}
        try:
            await self._app(get_scope, receive_until_answered, send_head)
        finally:
            if "route" in get_scope:
                scope["route"] = get_scope["route"]  # for the metrics
