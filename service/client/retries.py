"""When a request is sent again, and after what pause.

A refusal that says when to come back (429, 503 with ``Retry-After``) was not carried out: any request may come again.
Where the connection broke, or a proxy gave up (502, 504), it may have been carried out: only what does no harm twice is
asked again: reading, estimating other than in the background, and requests with an Idempotency-Key. Nobody listening is
told at once.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from .errors import APIError, NobodyThere, Unreachable

RETRIES = 3
LONGEST_S = 60.0  # who is told to come back later than that is told so
_FIRST_S = 0.5
_LATER = frozenset({429, 503})
_GIVEN_UP = frozenset({502, 504})


def pause_before(
    attempt: int, method: str, path: str, headers: Mapping[str, str] | None, failure: Unreachable | APIError
) -> float | None:
    """Seconds to wait before a request is sent again; None where it should not be.

    Args:
        attempt: how often it was sent again so far.
        failure: what came of it.
    """
    backoff_s = _FIRST_S * 2**attempt * random.uniform(0.8, 1.2)
    if isinstance(failure, APIError):
        if failure.status in _LATER and failure.retry_after_s is not None:
            return max(failure.retry_after_s, backoff_s) if failure.retry_after_s <= LONGEST_S else None
        again = failure.status in _GIVEN_UP
        backoff_s = max(backoff_s, min(failure.retry_after_s or 0.0, LONGEST_S))
    else:
        again = not isinstance(failure, NobodyThere)
    headers = headers or {}
    estimates = path == "/estimate" and "Prefer" not in headers  # one in the background would be there twice
    harmless = method in ("GET", "HEAD") or estimates or "Idempotency-Key" in headers
    return backoff_s if again and harmless else None
