"""Read the last heartbeat of a worker that this stack runs, and free the jobs that it held when it crashed."""

from __future__ import annotations

import logging
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.contract import routing
from service.contract.jobs.store import JobStore
from service.contract.routing import Kind

logger = logging.getLogger(__name__)

_TIMEOUT_S = 0.5  # the supervisor waits for it


class WorkerWatch:
    """The heartbeats and leases of one kind of worker. While Redis does not answer, its methods do nothing."""

    def __init__(self, redis_url: str, kind: Kind) -> None:
        self._kind = kind
        self._redis: Any = redis.Redis.from_url(
            redis_url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )

    def last_beat(self, pid: int) -> float | None:
        """Return the time of a process's last heartbeat; None if it has none, or Redis does not answer."""
        try:
            beats = self._redis.zrange(routing.workers_key(self._kind), 0, -1, withscores=True)
        except redis.RedisError:
            return None
        own = [float(beat) for worker_id, beat in beats if worker_id.decode().startswith(routing.worker_id_prefix(pid))]
        return max(own, default=None)

    def forget(self, pid: int) -> None:
        """Remove the heartbeats and leases of a process that has ended, so that its jobs need not wait for them."""
        try:
            index, prefix = routing.workers_key(self._kind), routing.worker_id_prefix(pid)
            for worker_id in self._redis.zrange(index, 0, -1):
                if worker_id.decode().startswith(prefix):
                    self._redis.delete(routing.worker_key(self._kind, worker_id.decode()))
                    self._redis.zrem(index, worker_id)
            freed = JobStore(self._redis).release_leases_of(prefix)
            if freed:
                logger.info("released the jobs of a crashed worker: pid=%d jobs=%s", pid, ",".join(freed))
        except redis.RedisError as error:
            logger.warning("leases of a crashed worker not released, they will expire: pid=%d: %s", pid, error)
