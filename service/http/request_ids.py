"""Request ids: the client's ``X-Request-ID``, else a new one; asgi-correlation-id adds it to responses and the log."""

from __future__ import annotations

import itertools
import re
import secrets

from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import FastAPI

HEADER = "X-Request-ID"
LOG_FORMAT = "%(asctime)s %(levelname)s [%(correlation_id)s] %(name)s: %(message)s"

# safe in a log line and in a header
_SAFE = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
# random bytes for each request would cost a system call
_process = secrets.token_hex(4)
_count = itertools.count()


def new_request_id() -> str:
    """Return an id that no other request has."""
    return f"{_process}{next(_count):08x}"


def add_request_ids(app: FastAPI) -> None:
    """Add the middleware that gives each request its id. Add it last: it must be the outermost."""
    app.add_middleware(
        CorrelationIdMiddleware,
        header_name=HEADER,
        update_request_header=False,
        generator=new_request_id,
        # not a validator: it would log a warning for each unsafe id
        validator=None,
        transformer=_replace_unsafe,
    )


def _replace_unsafe(request_id: str) -> str:
    return request_id if _SAFE.fullmatch(request_id) else new_request_id()
