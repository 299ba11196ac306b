"""Errors that the client raises.

ClientError
├── InputError           an argument can't be sent (a missing file, a folder without pictures)
├── Unreachable          no response: the connection broke
│   └── CannotConnect    nothing listens at the address
└── APIError             the server refused; has the problem's status, code and detail
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx


class ClientError(Exception):
    """Base class. ``code`` is a word for programs, ``detail`` a sentence for people."""

    code = "client_error"
    title = "Client error"
    status: int | None = None

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    @property
    def problem(self) -> dict[str, Any]:
        """The error as a problem document (RFC 9457)."""
        members = {name: getattr(self, name) for name in ("title", "status", "detail", "code")}
        return {"type": "about:blank", **members}


class InputError(ClientError):
    """An argument that can't be sent."""

    code = "bad_input"
    title = "Bad input"


class Unreachable(ClientError):  # noqa: N818 named for what went wrong
    """The server gave no response."""

    code = "unreachable"
    title = "Server unreachable"


class CannotConnect(Unreachable):
    """Nothing listens at the server's address."""


NobodyThere = CannotConnect  # the former name, which callers may catch


class APIError(ClientError):
    """An error response of the server.

    Attributes:
        status: HTTP status.
        code: the problem's code, such as ``unknown_category``.
        retry_after_s: when to try again, if the server says so.
        repeated: whether an earlier attempt had no response; it may have made the change that this one conflicts with.
    """

    repeated = False

    def __init__(self, problem: Mapping[str, Any], status: int, retry_after_s: float | None = None) -> None:
        self.title = str(problem.get("title") or f"HTTP status {status}")
        super().__init__(str(problem.get("detail") or self.title))
        self.code = str(problem.get("code") or "unknown")
        self.status = status
        self.retry_after_s = retry_after_s
        self._problem = dict(problem)

    @property
    def problem(self) -> dict[str, Any]:
        """The problem document as the server sent it, with missing members added."""
        return {**super().problem, **self._problem}

    @classmethod
    def of(cls, response: httpx.Response) -> APIError:
        """Create the error from an unsuccessful response, which may be a proxy's page."""
        try:
            problem = response.json()
        except ValueError:
            problem = None
        if not isinstance(problem, dict):
            text = response.text.strip()[:200] or f"the response has status {response.status_code} and no body"
            problem = {"title": response.reason_phrase, "detail": text}
        return cls(problem, response.status_code, _parse_retry_after(response.headers.get("Retry-After", "")))


def _parse_retry_after(value: str) -> float | None:
    if value.isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
