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


def connect(url: str) -> redis.Redis:
    """A client that asks again twice at once, and no longer: threads have other things to do meanwhile."""
    return redis.Redis.from_url(
        url,
        socket_connect_timeout=5,
        socket_timeout=10,
        health_check_interval=10,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 2),
    )


def through_outages(call: Callable[[], Result], give_up: Callable[[], bool]) -> Result:
    """What a call returns, tried again for as long as Redis is away.

    Raises:
        redis.RedisError: of the last try, once ``give_up`` says so; others at once.
    """
    pause_s = 0.1
    while True:
        try:
            return call()
        except OUTAGES as error:
            if give_up():
                raise
            logger.warning("Redis is away (%s), trying again", error)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
