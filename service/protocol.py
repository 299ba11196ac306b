"""HTTP as the server reads it: also what is no HTTP at all is answered with a problem document."""

from __future__ import annotations

import logging

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from .contract.errors import ErrorCode
from .errors import MEDIA_TYPE, problem

log = logging.getLogger(__name__)


class ProblemProtocol(HttpToolsProtocol):
    """Uvicorn's, with its one answer that passes by the application as a problem document."""

    def send_400_response(self, msg: str) -> None:
        """Answers what can't be parsed as a request, and closes the connection."""
        log.info("no HTTP request from %s: %s", self.client[0] if self.client else "somebody", msg)
        detail = "what came is no HTTP/1.1 request; its first line, a header or the length of its body can't be read"
        body = bytes(problem(400, ErrorCode.BAD_REQUEST, "Bad request", detail).body)
        headers = [*self.server_state.default_headers, (b"content-type", MEDIA_TYPE.encode())]
        headers += [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[400] + lines + b"\r\n" + body)
        self.transport.close()
