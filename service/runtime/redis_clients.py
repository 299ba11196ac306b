"""Clients of Redis, and the errors that say it is unavailable."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio
from kombu.exceptions import OperationalError
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo
from redis.retry import Retry

# raised by redis-py and by Celery while Redis is unreachable, loading, full or demoted
QUEUE_ERRORS: tuple[type[Exception], ...] = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.exceptions.BusyLoadingError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
    OperationalError,
)
NO_ANSWER: tuple[type[Exception], ...] = (TimeoutError, *QUEUE_ERRORS)  # for callers with a timeout of their own

_OPTIONS: dict[str, Any] = {
    "socket_connect_timeout": 2,
    "health_check_interval": 15,
    "driver_info": DriverInfo(),  # otherwise each connection reads redis-py's version from the installed package
}
_TIMEOUT_S = 5.0


def redis_client(url: str) -> Any:
    """Return a synchronous client that fails after a few seconds: a request waits for it."""
    return redis.Redis.from_url(url, socket_timeout=_TIMEOUT_S, retry=Retry(NoBackoff(), 1), **_OPTIONS)


def async_redis_client(url: str, timeout_s: float = _TIMEOUT_S) -> Any:
    """Return an asynchronous client that fails after `timeout_s`."""
    return redis.asyncio.Redis.from_url(url, socket_timeout=timeout_s, retry=AsyncRetry(NoBackoff(), 1), **_OPTIONS)
