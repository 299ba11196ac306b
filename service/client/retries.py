"""When to send a failed request again.

- 429 or 503 with ``Retry-After``: the server did nothing, so any request is sent again.
- 502, 504 or a broken connection, as of a killed gateway: the server may have acted, so only requests that are safe to
  repeat are sent again: reads, estimates that do not run in the background, requests with an Idempotency-Key (jobs,
  background estimates, imports, landmarks, versions of running jobs), datasets (known by their content), PUT, DELETE,
  and what cancels, pauses or resumes. If the server refuses a change because an earlier attempt made it,
  :attr:`APIError.repeated` is true and the caller checks.
- Nothing listens at the address: not sent again, so that the user learns it at once.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Mapping

from .errors import APIError, CannotConnect, Unreachable

RETRIES = 3
MAX_RETRY_AFTER_S = 60.0  # longer waits are reported to the caller instead
_FIRST_DELAY_S = 0.5
_NOT_PROCESSED = frozenset({429, 503})
_GATEWAY_FAILED = frozenset({502, 504})
_REPEATABLE = frozenset({"GET", "HEAD", "PUT", "DELETE"})
_REPEATABLE_POSTS = ("/datasets", "/cancel", "/pause", "/resume")  # ends of paths


def new_idempotency_key(key: str | None = None) -> dict[str, str]:
    """Return the header that makes a request safe to repeat; its key is random unless one is given."""
    return {"Idempotency-Key": key or str(uuid.uuid4())}


def retry_delay_s(
    attempt: int, method: str, path: str, headers: Mapping[str, str] | None, failure: Unreachable | APIError
) -> float | None:
    """Return the seconds to wait before sending the request again; None if it should not be sent again.

    Args:
        attempt: how often the request was sent again so far.
        failure: what the last attempt raised.
    """
    delay_s = _FIRST_DELAY_S * 2**attempt * random.uniform(0.8, 1.2)
    if isinstance(failure, APIError):
        if failure.status in _NOT_PROCESSED and failure.retry_after_s is not None:
            return max(failure.retry_after_s, delay_s) if failure.retry_after_s <= MAX_RETRY_AFTER_S else None
        is_transient = failure.status in _GATEWAY_FAILED
        delay_s = max(delay_s, min(failure.retry_after_s or 0.0, MAX_RETRY_AFTER_S))
    else:
        is_transient = not isinstance(failure, CannotConnect)
    headers = headers or {}
    is_waiting_estimate = path == "/estimate" and "Prefer" not in headers  # in the background it would run twice
    is_repeatable = method in _REPEATABLE or path.endswith(_REPEATABLE_POSTS) or "Idempotency-Key" in headers
    is_repeatable = is_repeatable or is_waiting_estimate
    return delay_s if is_transient and is_repeatable else None
