"""Uvicorn's HTTP protocol with limits on request headers, and problem documents for what is not a request.

Uvicorn's settings cannot replace it. With httptools uvicorn has no limit on the headers of a request; with h11
`h11_max_incomplete_event_size` limits their bytes, but the response is 400 in plain text. Neither limits the time that
headers may take, nor how long the rest of a body is read after the response (408, 431; see test_protocol.py).
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
REST_S = 30.0  # how long the rest of a body is read and dropped after the response

_NOT_HTTP = "the data is not an HTTP/1.1 request: its first line, a header or the length of its body is malformed"
_TOO_LONG = f"the first line and headers have more than {MAX_HEAD_BYTES} bytes; send fewer or shorter headers"


class _HeadTooLongError(Exception):
    """Stops the parser."""


class ProblemProtocol(HttpToolsProtocol):
    """Limit the bytes and the time of a head (first line, headers, trailers); refuse with problem documents."""

    _head_bytes = 0  # complete parts of the head
    _unparsed_bytes = 0  # since the parser's last callback
    _head_timer: asyncio.TimerHandle | None = None
    _rest_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer of the first head."""
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self._cancel_head_timer()
        self._cancel_rest_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data; refuse a header that does not end."""
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._unparsed_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(431, "Request header fields too large", _TOO_LONG)

    def on_message_begin(self) -> None:
        """Start the timer and count of a head."""
        super().on_message_begin()
        self._unparsed_bytes = self._head_bytes = 0
        if self._head_timer is None:
            self._start_head_timer()

    def on_url(self, url: bytes) -> None:
        """Count a part of the first line."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header or a trailer."""
        self._count_head(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop the timer; the application limits the time of a body."""
        self._unparsed_bytes = 0
        self._cancel_head_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Do not count a body as a head."""
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Stop the timer of the rest of a body."""
        self._cancel_rest_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Read on for a while where the body is incomplete, or the client might not see the response."""
        # otherwise the cycle is that of the next pipelined request
        if self.cycle.response_complete and self.cycle.more_body and self._rest_timer is None:
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
            headers = [*self.server_state.default_headers, (b"content-type", MEDIA_TYPE.encode())]
            headers.append((HEADER.lower().encode(), request_id.encode()))
            headers += [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
            lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
            self.transport.write(STATUS_LINE[status] + lines + b"\r\n" + body)
        self.transport.close()

    def _count_head(self, size: int) -> None:
        self._unparsed_bytes = 0
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _HeadTooLongError

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S, self._on_head_timeout)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _cancel_rest_timer(self) -> None:
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None

    def _on_head_timeout(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._start_head_timer()  # the request before it is served, and nothing is read meanwhile
        elif self.scope is None:  # nothing came, as on a browser's spare connection
            self.transport.close()
        elif not self.transport.is_closing():
            detail = f"the first line and headers of the request did not come within {HEAD_S:g} s; send them faster"
            self._refuse(408, "Request timeout", detail)
