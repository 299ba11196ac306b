"""Leases of jobs."""

from __future__ import annotations

from typing import Any

from service.contract import routing

from . import scripts


class LeaseLost(Exception):  # noqa: N818 - what happened, as in errors.py
    """Another process holds the lease: stop, and write nothing."""


class Lease:
    """An expiring lock on a job; renew it before its TTL ends."""

    def __init__(self, client: Any, job_id: str, token: str, ttl_s: float) -> None:
        self._redis = client
        self.job_id = job_id
        self.token = token
        self.ttl_s = ttl_s

    def renew(self) -> bool:
        """Extend the lease, also after it expired if it is free. Return False if another process holds it."""
        key, ttl_ms = routing.lease_key(self.job_id), int(self.ttl_s * 1000)
        return bool(self._redis.eval(scripts.RENEW, 1, key, self.token, ttl_ms))

    def release(self) -> None:
        """Release the lease if it is still held."""
        self._redis.eval(scripts.RELEASE, 1, routing.lease_key(self.job_id), self.token)
