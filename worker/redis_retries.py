"""Connections of a worker to Redis, and retries while Redis is down."""

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

# errors of a server that is down, loading, full or demoted: the same call may work later
OUTAGES = (redis.ConnectionError, redis.TimeoutError, OutOfMemoryError, ReadOnlyError)

_MAX_PAUSE_S = 2.0


class OutageLog:
    """A log of the start and the end of each outage, once; ``what`` is delayed by it and begins the lines."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._since: float | None = None

    def log_failure(self, error: Exception) -> None:
        """Record a failed call."""
        if self._since is None:
            self._since = time.monotonic()
            logger.warning("%s: Redis is down or full (%s), retrying until it is back", self._what, error)

    def log_success(self) -> None:
        """Record a successful call."""
        if self._since is not None:
            logger.info("%s: Redis is back after %.1f s", self._what, time.monotonic() - self._since)
            self._since = None


def connect(url: str) -> redis.Redis:
    """Return a client that retries twice, briefly: threads must not block for long."""
    return redis.Redis.from_url(
        url,
        socket_connect_timeout=5,
        socket_timeout=10,
        health_check_interval=10,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 2),
    )


def retry_outages(call: Callable[[], Result], give_up: Callable[[], bool], what: str) -> Result:
    """Return a call's result, retrying it while Redis is down.

    Raises the last outage once `give_up`, checked after each failure, returns true; any other error at once.
    """
    log = OutageLog(what)
    pause_s = 0.1
    while True:
        try:
            result = call()
            log.log_success()
            return result
        except OUTAGES as error:
            log.log_failure(error)
            if give_up():
                raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)
