"""Threads that tell others that this worker lives, and that a message is still in hand."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis

from service.contract import routing
from service.contract.messages import WorkerHeartbeat
from service.contract.routing import Kind

from .redis_retries import OutageLog

logger = logging.getLogger(__name__)


def new_worker_id() -> str:
    """Host and process, and a part that tells a restarted one apart."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


class Heartbeat:
    """Writes a WorkerHeartbeat every few seconds from a thread.

    Args:
        client: of Redis.
        metrics: gives the worker's counters as text.
        busy: whether it works just now.
    """

    def __init__(
        self,
        client: Any,
        kind: Kind,
        worker_id: str,
        device: str,
        metrics: Callable[[], str],
        busy: Callable[[], bool],
        every_s: float = routing.HEARTBEAT_EVERY_S,
    ) -> None:
        self._redis = client
        self._kind: Kind = kind
        self._id = worker_id
        self._device = device
        self._metrics = metrics
        self._busy = busy
        self._every_s = every_s
        self._started_at = time.time()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Beat from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and say that this worker is gone."""
        if not self._thread.is_alive():
            return
        self._done.set()
        self._thread.join()
        try:
            with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(routing.worker_key(self._kind, self._id))
                pipe.zrem(routing.workers_key(self._kind), self._id)
                pipe.execute()
        except redis.RedisError as error:
            logger.warning("the last heartbeat is left to expire: %s", error)

    def beat(self) -> None:
        """Write one."""
        message = WorkerHeartbeat(
            kind=self._kind,
            id=self._id,
            pid=os.getpid(),
            host=socket.gethostname(),
            started_at=self._started_at,
            device=self._device,
            busy=self._busy(),
            metrics=self._metrics(),
        )
        now = time.time()
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(routing.worker_key(self._kind, self._id), message.model_dump_json(), ex=routing.HEARTBEAT_TTL_S)
            pipe.zadd(routing.workers_key(self._kind), {self._id: now})
            pipe.zremrangebyscore(routing.workers_key(self._kind), 0, now - 6 * routing.HEARTBEAT_TTL_S)
            pipe.execute()

    def _run(self) -> None:
        log = OutageLog("heartbeat")
        while True:
            try:
                self.beat()
                log.worked()
            except redis.RedisError as error:
                log.failed(error)
            if self._done.wait(self._every_s):
                return


class Keepalive:
    """Keeps the message that a batch came by from being delivered again while the batch is worked on.

    kombu gives a message to somebody else once it is unacknowledged for longer than the visibility
    timeout; its time is set anew every third of that. A process that was killed sets nothing.
    """

    def __init__(self, client: Any, kind: Kind, visibility_s: float = routing.INFERENCE_VISIBILITY_S) -> None:
        self._redis = client
        self._key = routing.unacked_index_key(kind)
        self._every_s = visibility_s / 3
        self._tag: str | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keepalive", daemon=True)

    def start(self) -> None:
        """Look after messages from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking."""
        self._done.set()

    @contextmanager
    def holding(self, tag: str | None) -> Iterator[None]:
        """The message of this delivery tag is in hand until the block ends."""
        self._tag = tag
        try:
            yield
        finally:
            self._tag = None

    def _run(self) -> None:
        log = OutageLog("keeping the message in hand from a second delivery")
        while not self._done.wait(self._every_s):
            tag = self._tag
            if tag is None:
                continue
            try:
                self._redis.zadd(self._key, {tag: time.time()}, xx=True)
                log.worked()
            except redis.RedisError as error:
                log.failed(error)
