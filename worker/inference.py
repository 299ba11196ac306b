"""Process batches: message → pixels → model → reply. Every batch with a reply list gets one reply."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import redis
from celery import Task
from numpy.typing import NDArray

from model.network.perceptual import WeightsUnavailableError
from model.network.refine import NoMemoryError
from model.predictor import Predictor
from model.version.tensor_files import CheckpointError
from service.contract import routing
from service.contract.errors import ModelFailed, NoMemory, PixelsExpired, PPLError, StoreCorrupt, StoreUnavailable
from service.contract.logs import bind_ids
from service.contract.memory import release_memory
from service.contract.messages import BatchReply, BatchRequest
from service.contract.routing import Kind
from service.contract.tracing import span
from service.contract.versions.shared import POLL_EVERY_S, SharedVersions
from service.contract.versions.store import VersionStore
from worker.heartbeat import PeriodicThread
from worker.jobs import Stop
from worker.metrics import InferenceMetrics
from worker.redis_retries import OUTAGES, retry_outages

logger = logging.getLogger(__name__)


@dataclass
class InferenceEngine:
    """A processor of batches, one at a time. Once a stop is requested, it no longer waits for Redis."""

    redis: Any
    models: ResidentModels
    metrics: InferenceMetrics
    stop: Stop
    is_busy: bool = False

    def handle(self, message: Mapping[str, Any]) -> None:
        """Process one message from the queue; errors of the batch go into the reply and are not raised."""
        self.is_busy = True
        batch_id, requests = str(message.get("batch_id")), ",".join(map(str, message.get("requests") or ()))
        try:
            with bind_ids(batch=batch_id, request=requests), span("estimate", [_traceparent(message)], batch=batch_id):
                reply = self._make_reply(message)
                self.metrics.batches.labels(str(reply.error.code) if reply.error else "ok").inc()
                self._send_reply(message, reply)
        finally:
            self.is_busy = False

    def _make_reply(self, message: Mapping[str, Any]) -> BatchReply:
        batch_id = str(message.get("batch_id"))
        try:
            return self._estimate(BatchRequest.parse(message))
        except PPLError as error:
            logger.warning("batch=%s: %s (%s)", batch_id, error.detail, error.code)
            return BatchReply(batch_id=batch_id, error=error)
        except Exception as error:  # the gateway must get a reply to any failure
            logger.exception("batch=%s: failed", batch_id)
            hint = " (out of memory)" if isinstance(error, MemoryError) or "out of memory" in str(error) else ""
            return BatchReply(batch_id=batch_id, error=ModelFailed(f"the model failed on this batch{hint}"))

    def _estimate(self, request: BatchRequest) -> BatchReply:
        started = time.perf_counter()
        images = self._fetch_pixels(request)
        with span("load", category=request.category, version=request.version):
            model = self.models.get(request.category, request.version)
        loaded = time.perf_counter()
        try:
            more = {name: getattr(request, name) for name in ("link_map", "codes", "reconstructions")}
            with span("model", pictures=request.count, refine_steps=request.refine_steps):
                prediction = model.predict(images, request.refine_steps, **more)
        except NoMemoryError as error:
            raise NoMemory(str(error)) from error
        ended = time.perf_counter()
        self.metrics.seconds.observe(ended - loaded)
        self.metrics.images.inc(request.count)
        seconds = {"load": loaded - started, "model": ended - loaded, "total": ended - started}
        timing_ms = {name: 1e3 * value for name, value in seconds.items()}
        return BatchReply(batch_id=request.batch_id, timing_ms=timing_ms, **vars(prediction))

    def _fetch_pixels(self, request: BatchRequest) -> NDArray[np.uint8]:
        key, give_up_at = routing.pixels_key(request.batch_id), time.monotonic() + _life_s(request.timeout_s)
        data = retry_outages(
            lambda: self.redis.get(key),
            lambda: self.stop.requested or time.monotonic() > give_up_at,
            f"batch={request.batch_id}",
        )
        if data is None:
            raise PixelsExpired("the batch waited until all its requests had timed out, or was answered before")
        if len(data) != request.num_bytes:
            raise ModelFailed(f"the batch has {len(data)} bytes of pixels; expected {request.num_bytes}")
        # copied because torch needs writable memory
        return np.frombuffer(data, np.uint8).reshape(request.count, request.side, request.side, 3).copy()

    def _send_reply(self, message: Mapping[str, Any], reply: BatchReply) -> None:
        """Push the reply and delete the pixels, so that a second delivery of the batch ends early."""
        reply_to, give_up_at = message.get("reply_to"), time.monotonic() + _life_s(message.get("timeout_s"))
        if not isinstance(reply_to, str) or not reply_to.startswith(routing.reply_key("")):
            logger.error("batch=%s: dropped, its message has no reply list", reply.batch_id)
            return
        data = reply.pack()

        def push() -> None:
            with self.redis.pipeline(transaction=True) as pipe:
                pipe.rpush(reply_to, data)
                pipe.expire(reply_to, routing.REPLY_TTL_S)
                pipe.unlink(routing.pixels_key(reply.batch_id))
                pipe.execute()

        try:
            retry_outages(push, lambda: self.stop.requested or time.monotonic() > give_up_at, f"batch={reply.batch_id}")
        except OUTAGES:
            logger.exception("batch=%s: the reply could not be sent in time", reply.batch_id)


@dataclass
class ResidentModels:
    """An LRU cache of models in memory. Not thread-safe: a worker runs one batch at a time."""

    store: VersionStore
    limit: int
    load: Callable[[Path], Predictor]
    metrics: InferenceMetrics
    models: OrderedDict[tuple[str, str, tuple[int, int]], Predictor] = field(default_factory=OrderedDict)

    def get(self, category: str, version: str) -> Predictor:
        """Return the model of a version, loading it if needed.

        Raises:
            UnknownCategory, UnknownVersion, BadCategoryName, BadVersionName, and StoreCorrupt for damaged files.
            ModelFailed: the frozen network that the version names is not installed.
        """
        key = (category, version, self.store.identity(category, version))
        if key in self.models:
            self.models.move_to_end(key)
            return self.models[key]
        while len(self.models) >= self.limit:  # evict before loading, to stay within memory
            oldest = next(iter(self.models))
            del self.models[oldest]  # no name may keep it while the next one is loaded
            release_memory()
            self.metrics.evictions.inc()
            logger.info("model evicted: category=%s version=%s", *oldest[:2])
        self.metrics.resident.set(len(self.models))
        started = time.perf_counter()
        try:
            predictor = self.load(self.store.complete(category, version))
        except (CheckpointError, FileNotFoundError, ValueError) as error:
            logger.exception("model can't be loaded: category=%s version=%s", category, version)
            raise StoreCorrupt(
                f"version '{version}' of category '{category}' can't be loaded; the worker's log has the reason"
            ) from error
        except WeightsUnavailableError as error:
            logger.exception("model can't be loaded: category=%s version=%s", category, version)
            raise ModelFailed(f"version '{version}' of category '{category}' can't be loaded: {error}") from error
        self.models[key] = predictor
        self.metrics.loads.inc()
        self.metrics.resident.set(len(self.models))
        seconds = time.perf_counter() - started
        logger.info("model loaded: category=%s version=%s seconds=%.2f", category, version, seconds)
        return predictor


class Keepalive(PeriodicThread):
    """A thread that keeps the message of the current batch from being redelivered.

    kombu redelivers a message that stays unacknowledged for longer than the visibility timeout; this thread resets
    the message's time every third of that. A killed worker resets nothing, so its batch is redelivered.

    Args:
        now: the clock that kombu uses for the times of messages.
    """

    def __init__(
        self,
        client: Any,
        kind: Kind,
        now: Callable[[], float],
        visibility_s: float = routing.INFERENCE_VISIBILITY_S,
    ) -> None:
        super().__init__("keepalive", visibility_s / 3, (redis.RedisError,))
        self._redis, self._now = client, now
        self._key = routing.unacked_index_key(kind)
        self.tag: str | None = None  # delivery tag of the current batch's message

    def run_once(self) -> None:
        """Reset the time of the current message, if any."""
        if (tag := self.tag) is not None:
            self._redis.zadd(self._key, {tag: self._now()}, xx=True)


def _life_s(timeout_s: Any) -> float:
    """Return for how long at most a batch is worth an attempt to reach Redis, in seconds from now."""
    return float(timeout_s) if isinstance(timeout_s, (int, float)) else float(routing.PIXELS_TTL_S)


def _traceparent(message: Mapping[str, Any]) -> str | None:
    found = message.get("traceparent")
    return found if isinstance(found, str) else None


class VersionsFollower(PeriodicThread):
    """A thread that keeps this machine's copy of an object store's versions up to date."""

    def __init__(self, store: SharedVersions) -> None:
        super().__init__("versions", POLL_EVERY_S)
        self._store = store

    def run_once(self) -> None:
        with suppress(StoreUnavailable):  # which is logged where it is raised
            self._store.poll()


def make_task(engine: InferenceEngine, keepalive: Keepalive) -> Callable[[Task, dict[str, Any]], None]:
    """Return the body of the Celery task: process a batch while Keepalive renews its message."""

    def estimate(task: Task, message: dict[str, Any]) -> None:
        keepalive.tag = (task.request.properties or {}).get("delivery_tag")
        try:
            engine.handle(message)
        finally:
            keepalive.tag = None

    return estimate
