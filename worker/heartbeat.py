"""Background threads that survive their failures, and the one that publishes this worker's state."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import redis

from service.contract import routing
from service.contract.messages import WorkerHeartbeat
from service.contract.routing import Kind

from .redis_retries import OUTAGES, OutageLog

logger = logging.getLogger(__name__)

# Remove the workers without a heartbeat from the index. "prefix" is that of a heartbeat's key.
_FORGET_SILENT = """
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if redis.call('EXISTS', ARGV[1] .. id) == 0 then redis.call('ZREM', KEYS[1], id) end
end
"""


class PeriodicThread(ABC):
    """Base of a daemon thread that calls `run_once` every few seconds; ``name`` also begins its log lines.

    Errors that are ``outages`` are logged once per outage, without a traceback.
    """

    def __init__(self, name: str, every_s: float, outages: tuple[type[Exception], ...] = OUTAGES) -> None:
        self._name, self._every_s, self._outages = name, every_s, outages
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread; the first call comes at once."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and wait for a running call."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    @abstractmethod
    def run_once(self) -> None:
        """Do one round of work."""

    def _run(self) -> None:
        log = OutageLog(self._name)
        while not self._done.is_set():
            try:
                self.run_once()
                log.log_success()
            except self._outages as error:
                log.log_failure(error)
            except Exception:  # the thread must survive any failed round
                logger.exception("%s: a round failed", self._name)
            self._done.wait(self._every_s)


def new_worker_id() -> str:
    """Return an id of host, process and a random part, so that a restarted worker gets a new one."""
    return routing.worker_id_prefix(os.getpid()) + secrets.token_hex(3)


class Heartbeat(PeriodicThread):
    """A thread that writes a WorkerHeartbeat every few seconds, with the worker's metrics and whether it is busy."""

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
        self._metrics, self._is_busy = metrics, is_busy
        self._message = WorkerHeartbeat(
            kind=kind,
            id=worker_id,
            pid=os.getpid(),
            host=socket.gethostname(),
            started_at=time.time(),
            device=device,
        )
        self._key, self._index = routing.worker_key(kind, worker_id), routing.workers_key(kind)

    def stop(self) -> None:
        """End the thread and remove this worker from the list of live ones."""
        if not self._thread.is_alive():
            return
        super().stop()
        try:
            with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(self._key)
                pipe.zrem(self._index, self._message.id)
                pipe.execute()
        except redis.RedisError as error:
            logger.warning("heartbeat: the last one could not be removed and will expire: %s", error)

    def run_once(self) -> None:
        """Write one heartbeat."""
        message = self._message.model_copy(update={"busy": self._is_busy(), "metrics": self._metrics()})
        now = time.time()
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(self._key, message.model_dump_json(), ex=routing.HEARTBEAT_TTL_S)
            pipe.zadd(self._index, {message.id: now})
            pipe.set(routing.seen_key(message.kind), "1", ex=routing.ABSENT_S)
            # not by time: machines' clocks may differ
            pipe.eval(_FORGET_SILENT, 1, self._index, routing.worker_key(message.kind, ""))
            pipe.execute()
