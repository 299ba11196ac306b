"""A batch: message → pixels → model → reply. Every batch that somebody waits for gets one reply."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.network.refine import NoMemoryError
from service.contract import routing
from service.contract.errors import ModelFailed, NoMemory, PixelsExpired, PPLError
from service.contract.messages import BatchReply, BatchRequest
from worker.metrics import InferenceMetrics
from worker.redis_retries import OUTAGES, through_outages

from .resident_models import ModelRegistry

logger = logging.getLogger(__name__)


class InferenceEngine:
    """Works off batches, one at a time.

    Args:
        client: of Redis, returning bytes.
        stopping: whether the process shall end, and must not wait for Redis any longer.
    """

    def __init__(
        self, client: Any, models: ModelRegistry, metrics: InferenceMetrics, stopping: Callable[[], bool]
    ) -> None:
        self._redis = client
        self._models = models
        self._metrics = metrics
        self._stopping = stopping
        self.busy = False

    def handle(self, message: Mapping[str, Any]) -> None:
        """One message off the queue. Never raises for what is wrong with the batch: the reply says it."""
        self.busy = True
        try:
            reply = self._answer(message)
            self._metrics.batches.labels(str(reply.error.code) if reply.error else "ok").inc()
            self._push(message, reply)
        finally:
            self.busy = False

    def _answer(self, message: Mapping[str, Any]) -> BatchReply:
        batch_id = str(message.get("batch_id"))
        try:
            request = BatchRequest.parse(message)
            return self._estimate(request)
        except PPLError as error:
            logger.warning("batch %s: %s (%s)", batch_id, error.detail, error.code)
            return BatchReply(batch_id=batch_id, error=error)
        except Exception as error:  # whatever the model raises, those who wait are told
            logger.exception("batch %s failed", batch_id)
            hint = " (out of memory)" if isinstance(error, MemoryError) or "out of memory" in str(error) else ""
            return BatchReply(batch_id=batch_id, error=ModelFailed(f"the model failed on this batch{hint}"))

    def _estimate(self, request: BatchRequest) -> BatchReply:
        started = time.perf_counter()
        if time.time() > request.deadline:
            raise PixelsExpired("the batch waited longer than its request may take")
        images = self._pixels(request)
        model = self._models.get(request.category, request.version)
        loaded = time.perf_counter()
        try:
            prediction = model.predict(images, request.refine_steps, link_map=request.link_map, codes=request.codes)
        except NoMemoryError as error:
            raise NoMemory(str(error)) from error
        ended = time.perf_counter()
        self._metrics.seconds.observe(ended - loaded)
        self._metrics.images.inc(request.count)
        return BatchReply(
            batch_id=request.batch_id,
            keypoints=prediction.keypoints,
            scores=prediction.scores,
            trajectory=prediction.trajectory,
            link_map=prediction.link_map,
            surprises=prediction.surprises,
            codes=prediction.codes,
            timing_ms={
                "load": 1e3 * (loaded - started),
                "model": 1e3 * (ended - loaded),
                "total": 1e3 * (ended - started),
            },
        )

    def _pixels(self, request: BatchRequest) -> NDArray[np.uint8]:
        key = routing.pixels_key(request.batch_id)
        # beyond the deadline an answer is of no use
        data = through_outages(
            lambda: self._redis.get(key),
            lambda: self._stopping() or time.time() > request.deadline,
            f"batch {request.batch_id}",
        )
        if data is None:
            raise PixelsExpired("the batch's pixels have expired, or it was answered before")
        if len(data) != request.num_bytes:
            raise ModelFailed(f"the batch has {len(data)} bytes of pixels; {request.num_bytes} were expected")
        # a copy: torch wants memory that it may write to
        return np.frombuffer(data, np.uint8).reshape(request.count, request.side, request.side, 3).copy()

    def _push(self, message: Mapping[str, Any], reply: BatchReply) -> None:
        """Reply, and drop the pixels: a second delivery of the batch then ends by itself."""
        reply_to, deadline = message.get("reply_to"), message.get("deadline")
        if not isinstance(reply_to, str) or not reply_to.startswith(routing.reply_key("")):
            logger.error("batch %s names no reply list; dropped", reply.batch_id)
            return
        give_up_at = float(deadline) if isinstance(deadline, (int, float)) else time.time()
        data = reply.pack()

        def push() -> None:
            with self._redis.pipeline(transaction=True) as pipe:
                pipe.rpush(reply_to, data)
                pipe.expire(reply_to, routing.REPLY_TTL_S)
                pipe.unlink(routing.pixels_key(reply.batch_id))
                pipe.execute()

        try:
            through_outages(push, lambda: self._stopping() or time.time() > give_up_at, f"batch {reply.batch_id}")
        except OUTAGES:
            logger.exception("batch %s: no way to reply before its deadline", reply.batch_id)
