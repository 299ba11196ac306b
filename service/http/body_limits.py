"""What every request passes: a bound on its body, the figures and a line in the log. Plain ASGI: bodies stream."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access.guard import HEALTH, METRICS, key_of
from service.contract.errors import BodyTooLarge, PPLError
from service.runtime.metrics import Metrics
from service.runtime.threads import cancel_tasks

from .problems import SlowBody, problem_of

log = logging.getLogger(__name__)

STALL_S = 30.0  # how long a body may pause

_BODY_BYTES = "ppl.body_bytes"
_NO_ANSWER = 499  # the client went away first
_FAULT = 500


def body_bytes(scope: Scope) -> int:
    """The length of a request's body as declared, or the most it may be."""
    size: int = scope[_BODY_BYTES]
    return size


class HeadAsGet:
    """Answers HEAD as GET, without the body, wherever something can be read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        told = asyncio.Event()

        async def begin(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                told.set()

        async def nothing() -> Message:
            coming, answered = asyncio.ensure_future(receive()), asyncio.ensure_future(told.wait())
            try:
                await asyncio.wait((coming, answered), return_when=asyncio.FIRST_COMPLETED)
                # of a stream nobody waits for the rest
                return {"type": "http.disconnect"} if told.is_set() else coming.result()
            finally:
                await cancel_tasks((coming, answered))

        inner = {**scope, "method": "GET"}
        try:
            await self._app(inner, nothing, begin)
        finally:
            if "route" in inner:
                scope["route"] = inner["route"]  # for the figures


class BodyLimit:
    """Refuses longer bodies with a problem document: at once where the length is declared, else on the way.

    And those that stop arriving, or drip: what is half there holds its place on the disk and in the queue.

    Args:
        limit_of: the limit in bytes for a request.
        slowest: bytes a second that must come once STALL_S have gone into waiting for them; 0 for no bound. Who sent
            fast before may wait STALL_S again and no longer. Time that the server takes to put away what came does
            not count.
    """

    def __init__(self, app: ASGIApp, limit_of: Callable[[Scope], int], slowest: float = 0.0) -> None:
        self._app = app
        self._limit_of = limit_of
        self._slowest = slowest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit_of(scope)
        declared = dict(scope["headers"]).get(b"content-length", b"")
        scope[_BODY_BYTES] = int(declared) if declared.isdigit() else limit
        if scope[_BODY_BYTES] > limit:
            await problem_of(_too_large(limit, f"{scope[_BODY_BYTES]} bytes"))(scope, receive, send)
            return
        received, more = 0, True
        spare_s = STALL_S  # of waiting for the client; what comes earns more of it, never more than this
        refused: PPLError | None = None
        begun = answered = False

        async def counted() -> Message:
            nonlocal received, more, spare_s, refused
            if not more:  # only the client's leaving can come now
                return await receive()
            began = time.monotonic()
            try:
                async with asyncio.timeout(spare_s):
                    message = await receive()
            except TimeoutError:
                refused = self._too_slow(received, time.monotonic() - began)
                raise refused from None
            waited_s = time.monotonic() - began
            more = message.get("more_body", False)
            came = len(message.get("body", b""))
            received += came
            if received > limit:
                refused = _too_large(limit, f"more than {limit} bytes")
                raise refused
            if self._slowest:
                spare_s = min(STALL_S, max(0.0, spare_s - waited_s) + came / self._slowest)
            return message

        async def told(message: Message) -> None:
            """What the application answers, unless it took the refusal for something else, say a form it can't read."""
            nonlocal begun, answered
            if refused is None or begun:
                begun = True
                await send(message)
            elif not answered:
                answered = True
                response = problem_of(refused)
                if isinstance(refused, SlowBody):  # the rest of it is not waited for
                    response.headers["connection"] = "close"
                await response(scope, receive, send)

        await self._app(scope, counted, told)

    def _too_slow(self, received: int, paused_s: float) -> SlowBody:
        if paused_s > 0.9 * STALL_S or not self._slowest:
            return SlowBody(f"nothing of the body came for {paused_s:.0f} s; send it without a pause")
        return SlowBody(
            f"the body came too slowly: {received} bytes, then nothing for {paused_s:.1f} s; after {STALL_S:g} s of "
            f"waiting at least {self._slowest:.10g} bytes a second must come: send it over a faster connection"
        )


class RequestFigures:
    """Counts requests and their times by method, route template and status, and logs a line for each.

    Args:
        log_all: else only those that were not served are logged.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, *, log_all: bool = True) -> None:
        self._app = app
        self._metrics = metrics
        self._log_all = log_all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = _NO_ANSWER

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self._metrics.in_progress.track_inprogress():
            try:
                await self._app(scope, receive, noted)
            except Exception:  # answered with 500 further out
                status = _FAULT
                raise
            finally:
                # an address that exists nowhere must not make a label of its own
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if route != "none" else "any"
                took_s = time.perf_counter() - started
                self._metrics.requests.labels(method, route, status).inc()
                self._metrics.seconds.labels(method, route).observe(took_s)
                self._log(scope, status, took_s)

    def _log(self, scope: Scope, status: int, took_s: float) -> None:
        fine = status < 400
        watching = scope["path"] in HEALTH or scope["path"] == METRICS
        if fine and (watching or not self._log_all):
            return
        key = key_of(HTTPConnection(scope))
        caller = f"key {key.id}" if key else str((scope.get("client") or ("somebody",))[0])
        # as it came, undecoded: it can't break the line
        path = scope.get("raw_path", b"")[:200].decode("ascii", "backslashreplace")
        log.info("%s %s %d in %.1f ms, %s", scope["method"], path, status, 1e3 * took_s, caller)


def _too_large(limit: int, came: str) -> BodyTooLarge:
    return BodyTooLarge(f"the request has {came} and may have {limit}; send less at once")
