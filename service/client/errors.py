"""What the client raises.

ClientError
├── InputError           what was given can't be sent (no such file, a folder without pictures)
├── Unreachable          no answer: the connection broke
│   └── NobodyThere      nothing listens at the address
└── APIError             the server refused; carries the problem's status, code and detail
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx


class ClientError(Exception):
    """Base of all. ``code`` is a word that programs can compare, ``detail`` a sentence."""

    code = "client_error"
    title = "Client error"
    status: int | None = None

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    @property
    def problem(self) -> dict[str, Any]:
        """The error as a problem document (RFC 9457)."""
        return {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }


class InputError(ClientError):
    """What was given can't be sent."""

    code = "bad_input"
    title = "Bad input"


class Unreachable(ClientError):  # noqa: N818 named for what went wrong
    """The server gave no answer."""

    code = "unreachable"
    title = "Server unreachable"


class NobodyThere(Unreachable):
    """Nothing listens at the server's address."""


class APIError(ClientError):
    """The server's refusal.

    Attributes:
        status: HTTP status.
        code: the problem's stable word, as in ``unknown_category``.
        retry_after_s: when the server says that asking again makes sense.
    """

    def __init__(self, problem: Mapping[str, Any], status: int, retry_after_s: float | None = None) -> None:
        self.title = str(problem.get("title") or f"HTTP status {status}")
        super().__init__(str(problem.get("detail") or self.title))
        self.code = str(problem.get("code") or "unknown")
        self.status = status
        self.retry_after_s = retry_after_s
        self._problem = dict(problem)

    @property
    def problem(self) -> dict[str, Any]:
        """The problem document as the server sent it, completed where it lacks something."""
        return {**super().problem, **self._problem}

    @classmethod
    def of(cls, response: httpx.Response) -> APIError:
        """From any answer that is no success, a proxy's page included."""
        try:
            problem = response.json()
        except ValueError:
            problem = None
        if not isinstance(problem, dict):
            text = response.text.strip()[:200] or f"the answer has the status {response.status_code} and says nothing"
            problem = {"title": response.reason_phrase, "detail": text}
        return cls(problem, response.status_code, _seconds(response.headers.get("Retry-After", "")))


def _seconds(after: str) -> float | None:
    """A Retry-After, which is a number of seconds or a date."""
    if after.isdigit():
        return float(after)
    try:
        moment = parsedate_to_datetime(after)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
