"""HTTP as the server reads it: also what is no HTTP at all is answered with a problem document.

And a bound on what comes before any of our code sees a request, which uvicorn's fast parser has not: the bytes of its
first line, headers and trailers, and the time that they may take. What comes of a body after its request was refused is
bounded too.
"""

from __future__ import annotations

import asyncio
import logging

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.contract.errors import BadRequest

from .problems import MEDIA_TYPE, problem
from .request_ids import HEADER, new_request_id

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 2**10
HEAD_S = 20.0
REST_S = 30.0  # how long the rest of a body is read, and thrown away, whose request was answered already

_NO_HTTP = "what came is no HTTP/1.1 request; its first line, a header or the length of its body can't be read"
_TOO_LONG = f"its first line and headers have more than {MAX_HEAD_BYTES} bytes; send fewer or shorter headers"


class _TooLong(Exception):  # noqa: N818 - it ends the parser, and goes no further
    """More bytes of headers than may come."""


class ProblemProtocol(HttpToolsProtocol):
    """Uvicorn's, with its one answer that passes by the application as a problem document, and bounds on a head."""

    _head_bytes = 0  # of the request: its first line, headers and trailers, as far as they are complete
    _unparsed_bytes = 0  # that came since the parser last told of anything
    _head_timer: asyncio.TimerHandle | None = None
    _rest_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there; its request must come soon."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._stop_waiting()
        self._stop_reading_on()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came; a header that never ends is not kept."""
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._unparsed_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(431, "Request header fields too large", _TOO_LONG)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._unparsed_bytes = self._head_bytes = 0
        if self._head_timer is None:
            self._await_head()

    def on_url(self, url: bytes) -> None:
        """A part of its first line."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        self._count_head(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there; how long a body may take is the application's to say."""
        self._unparsed_bytes = 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """All of a request came."""
        self._stop_reading_on()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """It was answered. Where its body still comes, that is read on, or the client might not see the answer."""
        # else the cycle is that of a request behind it
        if self.cycle.response_complete and self.cycle.more_body and self._rest_timer is None:
            self._rest_timer = self.loop.call_later(REST_S, self.transport.close)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers what can't be parsed as a request, and closes the connection."""
        log.info("no HTTP request from %s: %s", self.client[0] if self.client else "somebody", msg)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, "Request header fields too large", _TOO_LONG)
        else:
            self._refuse(400, "Bad request", _NO_HTTP)

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: a client may offer another protocol, and gets its answer in this one."""

    def _refuse(self, status: int, title: str, detail: str) -> None:
        under_way = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if not under_way:  # else it would stand in the middle of another answer
            name = new_request_id()
            log.info("request %s was answered %d before it was one: %s", name, status, title)
            body = bytes(problem(status, BadRequest.code, title, detail, {"request_id": name}).body)
            headers = [*self.server_state.default_headers, (b"content-type", MEDIA_TYPE.encode())]
            headers.append((HEADER.lower().encode(), name.encode()))
            headers += [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
            lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
            self.transport.write(STATUS_LINE[status] + lines + b"\r\n" + body)
        self.transport.close()

    def _count_head(self, size: int) -> None:
        self._unparsed_bytes = 0
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _TooLong

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S, self._on_slow_head)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_reading_on(self) -> None:
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None

    def _on_slow_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._await_head()  # the one before it is served, and what comes meanwhile is not read
        elif self.scope is None:  # it said nothing at all, as a browser's connection in reserve
            self.transport.close()
        elif not self.transport.is_closing():
            what = f"the first line and headers of a request did not come within {HEAD_S:g} s"
            self._refuse(408, "Request timeout", what)
