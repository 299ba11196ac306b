"""The right to work on a job."""

from __future__ import annotations

from typing import Any

from service.contract import routing

from . import scripts


class LeaseLost(Exception):  # noqa: N818 - what happened, as in errors.py
    """Another process has the job now: stop, and write nothing."""


class Lease:
    """The right to work on a job, held by refreshing it before it expires."""

    def __init__(self, client: Any, job_id: str, token: str, ttl_s: float) -> None:
        self._redis = client
        self.job_id = job_id
        self.token = token
        self.ttl_s = ttl_s

    def renew(self) -> bool:
        """Extend it, also when it ran out and nobody took it; False once it is another's."""
        key, ttl_ms = routing.lease_key(self.job_id), int(self.ttl_s * 1000)
        return bool(self._redis.eval(scripts.RENEW, 1, key, self.token, ttl_ms))

    def release(self) -> None:
        """Give it back, if it is still held."""
        self._redis.eval(scripts.RELEASE, 1, routing.lease_key(self.job_id), self.token)
