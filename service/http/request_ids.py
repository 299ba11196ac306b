"""A name for each request, in its answer and in every line that is logged for it.

A client may give one (``X-Request-ID``), so that its own log and ours can be read side by side; else it is made here.
"""

from __future__ import annotations

import contextvars
import itertools
import logging
import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-ID"
LOG_FORMAT = "%(asctime)s %(levelname)s [%(request_id)s] %(name)s: %(message)s"

# what can stand in a log and a header as it came
_GIVEN = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_NONE = "-"
_current: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default=_NONE)

# told apart by the start of this process and a count: random bytes for each would cost a system call
_start = secrets.token_hex(4)
_count = itertools.count()


def new_request_id() -> str:
    """A name that no other request has."""
    return f"{_start}{next(_count):08x}"


def current_request_id() -> str | None:
    """The id of the request that is being served here, None outside of any."""
    name = _current.get()
    return None if name == _NONE else name


class RequestId:
    """Gives each request its id, and puts it into the answer. The outermost of what a request passes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        name = given if _GIVEN.fullmatch(given) else new_request_id()
        _current.set(name)  # a request is served in a task of its own; the handler of faults further out needs it too

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = name
            await send(message)

        await self._app(scope, receive, named)


class RequestIdFilter(logging.Filter):
    """Lets a format name ``request_id``."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Adds it; keeps every line."""
        record.request_id = _current.get()
        return True
