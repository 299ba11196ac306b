"""Limit heads and bodies of requests, give each request an id, and answer HEAD.

The limits on heads need a protocol of our own for uvicorn: with httptools uvicorn has none; with h11
`h11_max_incomplete_event_size` limits their bytes, but the response is 400 in plain text. Neither limits the time that
headers may take, nor how long the rest of a body is read after the response (408, 431; see test_protocol.py).

The id is the client's ``X-Request-ID``, else a new one; asgi-correlation-id adds it to responses and the log.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
import time

from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.contract.errors import BadRequest, BodyTooLarge, PPLError
from service.contract.jobs.files import MAX_LABELS_BYTES, MAX_PRIOR_BYTES
from service.runtime.settings import Settings

from .headers import media_type, responds_async
from .problems import MEDIA_TYPE, REQUEST_ID, SlowBody, UnsupportedMedia, problem, problem_response

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 2**10
HEAD_S = 20.0
REST_S = 30.0  # how long the rest of a body is read and dropped after the response

_NOT_HTTP = "the data is not an HTTP/1.1 request: its first line, a header or the length of its body is malformed"
_TOO_LONG = f"the first line and headers have more than {MAX_HEAD_BYTES} bytes; send fewer or shorter headers"

LOG_FORMAT = "%(asctime)s %(levelname)s [%(correlation_id)s] %(name)s: %(message)s"
# safe in a log line and in a header
_SAFE = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
# random bytes for each request would cost a system call
_process = secrets.token_hex(4)
_count = itertools.count()

STALL_S = 30.0  # how long a body may pause
# the parts of a multipart form beside its files
_FORM_BYTES = 2**20
# the event loop parses JSON in one piece, so it must be short; a folder, some settings and a prior are
_JSON_BYTES = 256 * 2**10
_IMPORT = re.compile(r"/priors/[^/]+/versions/import")
_LANDMARKS = re.compile(r"/priors/[^/]+/landmarks")
_BODY_BYTES = "ppl.body_bytes"


class ProblemProtocol(HttpToolsProtocol):
    """A protocol that limits a head (first line, headers, trailers) in bytes and time; refuses by problem documents."""

    _head_bytes = 0  # complete parts of the head
    _unparsed_bytes = 0  # since the parser's last callback
    _head_timer: asyncio.TimerHandle
    _rest_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer.cancel()
        self._cancel_rest_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data; refuse a header that does not end."""
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._unparsed_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(431, "Request header fields too large", _TOO_LONG)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unparsed_bytes = self._head_bytes = 0
        if self._head_timer.cancelled():  # the first head's runs since the connection was made
            self._start_head_timer()

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header or a trailer."""
        self._count_head(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop the timer; the application limits the time of a body."""
        self._unparsed_bytes = 0
        self._head_timer.cancel()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._cancel_rest_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Read on briefly if the body is incomplete; else the client might not see the response."""
        # otherwise the cycle is that of the next pipelined request
        if self.cycle.response_complete and self.cycle.more_body:
            self._rest_timer = self.loop.call_later(REST_S, self.transport.close)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser rejects, and close the connection."""
        log.info("invalid HTTP request: client=%s: %s", self.client[0] if self.client else "unknown", msg)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, "Request header fields too large", _TOO_LONG)
        else:
            self._refuse(400, "Bad request", _NOT_HTTP)

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: the offer of another protocol is answered in this one."""

    def _refuse(self, status: int, title: str, detail: str) -> None:
        responding = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if not responding:  # or the refusal would be written into another response
            request_id = new_request_id()
            log.info("refused before the application: request=%s status=%d: %s", request_id, status, title)
            body = bytes(problem(status, BadRequest.code, title, detail, {"request_id": request_id}).body)
            headers = [
                *self.server_state.default_headers,
                (b"content-type", MEDIA_TYPE.encode()),
                (REQUEST_ID.lower().encode(), request_id.encode()),
                (b"content-length", b"%d" % len(body)),
                (b"connection", b"close"),
            ]
            lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
            self.transport.write(STATUS_LINE[status] + lines + b"\r\n" + body)
        self.transport.close()

    def _count_head(self, size: int) -> None:
        self._unparsed_bytes = 0
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise OverflowError(_TOO_LONG)  # stops the parser

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S, self._on_head_timeout)

    def _cancel_rest_timer(self) -> None:
        if self._rest_timer:
            self._rest_timer.cancel()

    def _on_head_timeout(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._start_head_timer()  # the request before it is served, and nothing is read meanwhile
        elif self.scope is None:  # nothing came, as on a connection that a browser opens in advance
            self.transport.close()
        elif not self.transport.is_closing():
            detail = f"the first line and headers of the request did not come within {HEAD_S:g} s; send them faster"
            self._refuse(408, "Request timeout", detail)


def new_request_id() -> str:
    """Return an id that no other request has."""
    return f"{_process}{next(_count):08x}"


def add_request_ids(app: FastAPI) -> None:
    """Add the middleware that gives each request its id. Add it last: it must be the outermost."""
    app.add_middleware(
        CorrelationIdMiddleware,
        header_name=REQUEST_ID,
        update_request_header=False,
        generator=new_request_id,
        # not a validator: it would log a warning for each unsafe id
        validator=None,
        transformer=lambda given: given if _SAFE.fullmatch(given) else new_request_id(),
    )


def body_bytes(scope: Scope) -> int:
    """Return the declared length of a request's body, or the limit on it if none is declared."""
    return int(scope[_BODY_BYTES])


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
    """A middleware that refuses bodies that are too long (at once if declared), stall or arrive too slowly.

    A slow body would hold its part of the disk and its place in the queue. The client may make the server wait for
    STALL_S; every byte earns more time at `slowest_body_bytes_per_s`, up to STALL_S again (0: no pace is required).
    The time that the server takes to store the bytes does not count.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._slowest = settings.slowest_body_bytes_per_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit, headers = body_limit(scope, self._settings), Headers(scope=scope)
        coding = headers.get("content-encoding", "identity").strip().lower()
        if coding != "identity" and scope["method"] not in ("GET", "HEAD"):
            response = problem_response(
                UnsupportedMedia(f"the body is compressed (Content-Encoding: {coding[:80]}); send it uncompressed")
            )
            response.headers["accept-encoding"] = "identity"
            await response(scope, receive, send)
            return
        declared = headers.get("content-length", "")
        # int refuses thousands of digits, also of zeros
        scope[_BODY_BYTES] = int(declared.lstrip("0") or 0) if declared.isdigit() else limit
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
    return BodyTooLarge(f"the request has {actual}; at most {limit} are allowed, send less at once")


class HeadAsGet:
    """A middleware that answers HEAD as GET, without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                # ends the response: the server then reports the disconnect, which ends a stream
                await send({"type": "http.response.body"})

        get_scope = {**scope, "method": "GET"}
        try:
            await self._app(get_scope, receive, send_head)
        finally:
            scope["route"] = get_scope.get("route")  # for the metrics


class OuterPath:
    """The outermost middleware behind a proxy that serves the gateway below a prefix.

    It cuts off the prefix, unless the proxy did, and adds it to the addresses in ``Location``.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (scope["path"] + "/").startswith(self._prefix + "/"):
            scope["path"] = scope["path"][len(self._prefix) :] or "/"

        async def send_prefixed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("location", "").startswith("/"):
                    headers["location"] = self._prefix + headers["location"]
            await send(message)

        await self._app(scope, receive, send_prefixed)


class InnerPath:
    """The innermost middleware behind such a proxy: routes, pages and redirects see the prefix as the root path."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        inner = {**scope, "path": self._prefix + scope["path"], "root_path": self._prefix}
        try:
            await self._app(inner, receive, send)
        finally:
            scope["route"] = inner.get("route")  # for the metrics
