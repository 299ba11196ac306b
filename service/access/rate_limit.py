"""A bound on the requests a second of one caller."""

from __future__ import annotations

import time
from collections.abc import Callable

from service.contract.errors import RateExceeded

_MANY = 10_000


class RequestRate:
    """So many requests a second for each caller, with a second's worth at once (a token bucket).

    Kept in this process: of several gateways each allows as many.

    Args:
        per_s: 0 for no bound.
        clock: seconds, for tests.
    """

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._burst = max(1.0, per_s)
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}  # tokens of a caller, and when they were counted

    def take(self, caller: str) -> None:
        """Count a request.

        Raises:
            RateExceeded: it is one too many; says when the next may come.
        """
        if not self._per_s:
            return
        now = self._clock()
        tokens, at = self._left.get(caller, (self._burst, now))
        tokens = min(self._burst, tokens + (now - at) * self._per_s)
        if tokens < 1:
            raise RateExceeded(
                f"more than {self._per_s:g} requests a second came from this caller; send them more slowly",
                retry_after_s=(1 - tokens) / self._per_s,
            )
        if caller not in self._left and len(self._left) >= _MANY:
            self._forget(now)
        self._left[caller] = (tokens - 1, now)

    def _forget(self, now: float) -> None:
        """Callers that have all their tokens again are as if they had never come."""
        full_s = self._burst / self._per_s
        self._left = {caller: (left, at) for caller, (left, at) in self._left.items() if now - at < full_s}
