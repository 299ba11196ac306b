"""Redis may be restarted at any moment: how a worker reaches it, and what waits until it is back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import OutOfMemoryError, ReadOnlyError
from redis.retry import Retry

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# errors of a server that is away, loading, full or demoted: the same call may work later
OUTAGES = (redis.ConnectionError, redis.TimeoutError, OutOfMemoryError, ReadOnlyError)

_LONGEST_PAUSE_S = 2.0


class OutageLog:
    """Says once that Redis went, and once that it is back, however often it is asked meanwhile.

    Args:
        what: is held up by it.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._since: float | None = None

    def failed(self, error: Exception) -> None:
        """A call did not go through."""
        if self._since is None:
            self._since = time.monotonic()
            logger.warning("%s: Redis is away or full (%s), trying until it is back", self._what, error)

    def worked(self) -> None:
        """A call went through."""
        if self._since is not None:
            logger.info("%s: Redis is back after %.1f s", self._what, time.monotonic() - self._since)
            self._since = None


def connect(url: str) -> redis.Redis:
    """A client that asks again twice at once, and no longer: threads have other things to do meanwhile."""
    return redis.Redis.from_url(
        url,
        socket_connect_timeout=5,
        socket_timeout=10,
        health_check_interval=10,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 2),
    )


def through_outages(call: Callable[[], Result], give_up: Callable[[], bool], what: str) -> Result:
    """What a call returns, tried again for as long as Redis is away.

    Args:
        give_up: asked after each failure.
        what: is done, for the log.

    Raises:
        redis.RedisError: of the last try, once ``give_up`` says so; others at once.
    """
    log = OutageLog(what)
    pause_s = 0.1
    while True:
        try:
            result = call()
        except OUTAGES as error:
            log.failed(error)
            if give_up():
                raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        else:
            log.worked()
            return result
