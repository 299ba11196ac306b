"""Threads that publish this worker's state and keep its current message from being redelivered."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis

from service.contract import routing
from service.contract.messages import WorkerHeartbeat
from service.contract.routing import Kind

from .periodic_thread import PeriodicThread

logger = logging.getLogger(__name__)


def new_worker_id() -> str:
    """Return an id of host, process and a random part, so that a restarted worker gets a new one."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


class Heartbeat(PeriodicThread):
    """A thread that writes a WorkerHeartbeat every few seconds.

    Args:
        client: of Redis.
        metrics: returns the worker's metrics as text.
        is_busy: returns whether the worker has a task.
    """

    def __init__(
        self,
        client: Any,
        kind: Kind,
        worker_id: str,
        device: str,
        metrics: Callable[[], str],
        is_busy: Callable[[], bool],
        every_s: float = routing.HEARTBEAT_EVERY_S,
    ) -> None:
        super().__init__("heartbeat", every_s, (redis.RedisError,))
        self._redis = client
        self._kind: Kind = kind
        self._id = worker_id
        self._device = device
        self._metrics = metrics
        self._is_busy = is_busy
        self._started_at = time.time()

    def stop(self) -> None:
        """End the thread and remove this worker from the list of live ones."""
        if not self._thread.is_alive():
            return
        super().stop()
        try:
            with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(routing.worker_key(self._kind, self._id))
                pipe.zrem(routing.workers_key(self._kind), self._id)
                pipe.execute()
        except redis.RedisError as error:
            logger.warning("heartbeat: the last one could not be removed and will expire: %s", error)

    def run_once(self) -> None:
        """Write one heartbeat."""
        message = WorkerHeartbeat(
            kind=self._kind,
            id=self._id,
            pid=os.getpid(),
            host=socket.gethostname(),
            started_at=self._started_at,
            device=self._device,
            busy=self._is_busy(),
            metrics=self._metrics(),
        )
        now = time.time()
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(routing.worker_key(self._kind, self._id), message.model_dump_json(), ex=routing.HEARTBEAT_TTL_S)
            pipe.zadd(routing.workers_key(self._kind), {self._id: now})
            pipe.zremrangebyscore(routing.workers_key(self._kind), 0, now - 6 * routing.HEARTBEAT_TTL_S)
            pipe.execute()


class Keepalive(PeriodicThread):
    """A thread that keeps the message of the current batch from being redelivered.

    kombu redelivers a message that stays unacknowledged for longer than the visibility timeout; this thread resets
    the message's time every third of that. A killed worker resets nothing, so its batch is redelivered.
    """

    def __init__(self, client: Any, kind: Kind, visibility_s: float = routing.INFERENCE_VISIBILITY_S) -> None:
        super().__init__("keepalive", visibility_s / 3, (redis.RedisError,))
        self._redis = client
        self._key = routing.unacked_index_key(kind)
        self._tag: str | None = None

    @contextmanager
    def hold(self, tag: str | None) -> Iterator[None]:
        """Keep the message with this delivery tag until the block ends."""
        self._tag = tag
        try:
            yield
        finally:
            self._tag = None

    def run_once(self) -> None:
        """Reset the time of the held message, if any."""
        if (tag := self._tag) is not None:
            self._redis.zadd(self._key, {tag: time.time()}, xx=True)
