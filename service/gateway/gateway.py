"""Everything that one gateway process is made of: its stores, its way to the workers, its loops."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from fastapi import Request

from service.contract import routing
from service.contract.datasets.store import DatasetFiles
from service.contract.jobs.events import EventLog
from service.contract.jobs.files import JobFiles
from service.contract.jobs.paces import PaceBook
from service.contract.jobs.store import JobStore
from service.contract.media.pictures import PictureLimits
from service.contract.messages import BatchRequest
from service.contract.versions.store import VersionStore
from service.estimates.background.arrivals import Arrivals
from service.estimates.background.runner import AT_ONCE, Background
from service.estimates.background.store import EstimateFiles
from service.estimates.batching import Batcher
from service.http.uploads import remove_stale_uploads
from service.runtime.memory_limits import ByteBudget, VideoSlots
from service.runtime.metrics import Metrics
from service.runtime.redis_clients import NO_ANSWER, QUEUE_ERRORS, async_redis_client, redis_client
from service.runtime.secrets import webhook_secret
from service.runtime.settings import Settings
from service.runtime.threads import Threads, cancel_tasks
from service.runtime.worker_queue import LiveWorkers, Sender, read_replies
from service.training.job_intake import TrainingParts
from service.training.queue_places import JobQueue
from service.training.retention import JobCounts, remove_stale_jobs, trim_jobs
from service.training.webhooks import WebhookSender
from service.versions.reader import Versions

from .prior_pictures import PictureCache

log = logging.getLogger(__name__)

_PRIOR_PICTURE_BYTES = 32 * 2**20
_LOOK_EVERY_S = 1.0
_CLEAN_EVERY_S = 600.0
_TELL_EVERY_S = 1.0
_COUNT_EVERY_S = 10.0
_FIGURES_S = 3.0  # that those of Redis may take
_RESTART_LOOP_S = 1.0


class Gateway:
    """The parts of one gateway. Making it does no I/O: it starts while Redis is away.

    Attributes:
        video_slots: for videos that somebody waits for; each has a process that decodes it.
        prior_pictures: pictures of priors that were drawn before.
        arriving: estimates for the background that are still being sent.
        leaving: answers that go on for long shall end, as the gateway does.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.threads = Threads(settings.decode_threads, settings.max_videos + AT_ONCE)
        self.picture_limits = PictureLimits.of(settings)
        self.metrics = Metrics()
        self.versions = Versions(VersionStore(settings.data_root))
        self.files = JobFiles(settings.data_root)
        self.datasets = DatasetFiles(settings.data_root)
        self.estimates = EstimateFiles(settings.data_root)
        self.background = Background(self, self.estimates)
        self.budget = ByteBudget(settings.max_pending_bytes, self.metrics)
        self.arriving = Arrivals()
        self._sync_redis = redis_client(settings.redis_url)
        self.jobs = JobStore(self._sync_redis)
        self.events = EventLog(self._sync_redis)
        self.training = TrainingParts(settings, self.threads, self.jobs, self.files, self.datasets, self.versions.store)
        self.queue = JobQueue(self.jobs, PaceBook(self._sync_redis), lambda: self.workers.count("training"))
        self.job_counts = JobCounts(self._sync_redis, self.jobs)
        self.redis = async_redis_client(settings.redis_url)
        self.workers = LiveWorkers(self.redis)
        self._sender = Sender(settings.redis_url)
        self._reply_to = routing.reply_key(uuid.uuid4().hex)
        self.prior_pictures = PictureCache(_PRIOR_PICTURE_BYTES)
        self.video_slots = VideoSlots(settings.max_videos, self.metrics)
        self.batcher = Batcher(
            self._send_batch,
            self._reply_to,
            batch_limit=settings.batch_limit,
            queue_limit=settings.queue_limit,
            timeout_s=settings.estimate_timeout_s,
            late_s=settings.late_batch_s,
            wait_s=settings.batch_wait_s,
            live_workers=lambda: self.workers.count("inference"),
            metrics=self.metrics,
        )
        self.webhooks = WebhookSender(
            self.redis, self.jobs, self.threads.io, self.webhook_secret, private=settings.webhook_private
        )
        self._loops: list[asyncio.Task[None]] = []
        self._counted_at = -_COUNT_EVERY_S
        self.leaving = False

    async def start(self) -> None:
        """Begin to read replies, watch the workers and look after jobs."""
        read = partial(read_replies, self.settings.redis_url, self._reply_to, self.batcher.deliver)
        loops: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "replies": read,
            "workers": partial(_every, _LOOK_EVERY_S, self.workers.refresh),
            "reconcile": partial(_every, routing.RECONCILE_EVERY_S, self._reconcile),
            "webhooks": partial(_every, _TELL_EVERY_S, self.webhooks.start_due),
            "estimates": partial(_every, _TELL_EVERY_S, self.background.round),
            "uploads": partial(_every, _CLEAN_EVERY_S, self._clean),
        }
        self._loops = [asyncio.create_task(_keep_running(name, loop), name=name) for name, loop in loops.items()]

    async def stop(self) -> None:
        """End the loops and close what is open; requests in flight have been answered by now."""
        self.leaving = True
        await cancel_tasks(self._loops)
        await self.background.close()
        await self.webhooks.close()
        await self.batcher.close()
        self.threads.shutdown()
        await self.redis.aclose()
        self._sender.close()
        self._sync_redis.close()

    def webhook_secret(self) -> str:
        """What webhooks are signed with. Raises StoreCorrupt, OSError."""
        given = self.settings.webhook_secret
        return webhook_secret(self.settings.data_root, given.get_secret_value() if given else None)

    async def exposition(self) -> bytes:
        """The figures for Prometheus, brought up to date."""
        await self._update_gauges()
        workers = [*self.workers.live("inference"), *self.workers.live("training")]
        return await self.threads.io(self.metrics.exposition, workers if self.settings.metrics_include_workers else ())

    async def _update_gauges(self) -> None:
        metrics = self.metrics
        metrics.waiting.set(self.batcher.waiting)
        metrics.pending.set(self.batcher.pending)
        metrics.in_flight.set(self.batcher.in_flight)
        for kind in routing.KINDS:
            metrics.workers.labels(kind).set(self.workers.count(kind))
        try:
            async with asyncio.timeout(_FIGURES_S):
                for kind in routing.KINDS:
                    metrics.messages.labels(kind).set(await self.redis.llen(routing.queue_key(kind)))
                if time.monotonic() - self._counted_at > _COUNT_EVERY_S:
                    self._counted_at = time.monotonic()
                    for status, count in (await self.threads.io(self.job_counts.count)).items():
                        metrics.jobs.labels(status).set(count)
        except NO_ANSWER as error:
            log.warning("figures without those of Redis: %s", error or f"no answer within {_FIGURES_S:g} s")
            metrics.redis_up.set(0)
        else:
            metrics.redis_up.set(1)

    async def _send_batch(self, request: BatchRequest, pixels: bytes | None) -> None:
        await self.threads.send(self._sender.send_batch, request, pixels)

    async def wake_trainers(self) -> None:
        """Send the messages of jobs that wait without one, now rather than at the next look."""
        await self.threads.io(self.jobs.reconcile, self._sender.send_training)

    async def _reconcile(self) -> None:
        sent = await self.threads.io(self.jobs.reconcile, self._sender.send_training, exclusive=True)
        if sent:
            log.info("sent again, no worker had them: %s", ", ".join(sorted(sent)))

    async def _clean(self) -> None:
        await self.threads.io(self.datasets.sweep)
        settings = self.settings
        removed = await self.threads.io(remove_stale_jobs, self.files, self.jobs, settings.stale_upload_s)
        for root in (self.datasets.root, self.versions.store.root):
            removed += await self.threads.io(remove_stale_uploads, root, settings.stale_upload_s)
        forgotten = await self.threads.io(self.estimates.sweep, settings.background_kept_s, settings.stale_upload_s)
        if forgotten:
            log.info("removed estimates of long ago: %s", ", ".join(forgotten))
        if removed:
            log.info("removed the files of ended or abandoned uploads: %s", ", ".join(removed))
        trimmed = await self.threads.io(
            trim_jobs, self._sync_redis, self.jobs, settings.ended_jobs_kept, settings.idempotency_ttl_s
        )
        if trimmed:
            log.info("removed the records of the oldest %d jobs that ended", len(trimmed))


def gateway_of(request: Request) -> Gateway:
    """The gateway that serves a request."""
    gateway = request.app.state.gateway
    assert isinstance(gateway, Gateway)
    return gateway


async def _every(seconds: float, action: Callable[[], Awaitable[None]]) -> None:
    """Do something again and again; while Redis is away, say so once."""
    away = False
    while True:
        try:
            await action()
            away = False
        except QUEUE_ERRORS as error:
            if not away:
                log.warning("Redis is away: %s", error)
            away = True
        await asyncio.sleep(seconds)


async def _keep_running(name: str, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
    while True:
        try:
            await loop()
        except Exception:  # without its loops a gateway looks alive and is not: log it and go on
            log.exception("the loop %r failed and is started again", name)
        await asyncio.sleep(_RESTART_LOOP_S)
