"""Compose the parts of one gateway process, and run its background loops."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Depends, Query, Request

from service.access.keys import KeyStore
from service.contract import routing
from service.contract.clocks import ClockWatch
from service.contract.datasets.store import DatasetFiles
from service.contract.errors import StoreUnavailable
from service.contract.jobs.files import JobFiles
from service.contract.jobs.progress import EventLog, PaceBook
from service.contract.jobs.store import MAX_PAGE, JobStore
from service.contract.memory import release_memory
from service.contract.versions.shared import POLL_EVERY_S, SharedVersions, open_versions
from service.estimates.background.arrivals import Arrivals
from service.estimates.background.runner import AT_ONCE, BackgroundRunner
from service.estimates.background.shared_store import open_estimates
from service.estimates.category_queue import CategoryQueue, find_batchers, make_batcher, refresh_workers
from service.estimates.drawing import png, prior_picture
from service.estimates.estimator import Pipeline
from service.http.multipart import remove_stale_uploads
from service.runtime.concurrency import RequestLimit, Threads, cancel_tasks
from service.runtime.metrics import Exposition, Metrics
from service.runtime.redis_clients import NO_ANSWER, QUEUE_ERRORS, async_redis_client, redis_client
from service.runtime.secrets import webhook_secret
from service.runtime.settings import Settings
from service.runtime.worker_queue import LiveWorkers, Sender, read_replies
from service.training.job_intake import JobQueue, TrainingParts
from service.training.retention import JobCounts, remove_stale_jobs, trim_jobs
from service.training.webhooks import WebhookSender
from service.versions.reader import Versions

log = logging.getLogger(__name__)

_PRIOR_PICTURE_BYTES = 32 * 2**20
_REFRESH_EVERY_S = 1.0
_POLL_EVERY_S = 1.0
_CLEAN_EVERY_S = 600.0
_COUNT_EVERY_S = 10.0
_RELEASE_EVERY_S = 60.0
_REDIS_METRICS_S = 3.0  # timeout of reading metrics from Redis
_RESTART_S = 1.0
# each asks Redis twice a second: 500 take a quarter of a core
_MAX_STREAMS = 256
_STREAMS_OPEN = "{held} streams of events are open, of {limit} at most; close some, or ask for the events as JSON"
_BUDGET_SPENT = "the requests being served hold {held} of {limit} bytes; try again in a moment"
_VIDEOS_TAKEN = (
    "{held} videos are being decoded, the most allowed; try again in a moment, or send the video with "
    "'Prefer: respond-async' to have it estimated in the background"
)

# category, version, its identity, as it can be created again, and the side in pixels
PriorKey = tuple[str, str, tuple[int, int], int]


class Member(NamedTuple):
    """One of the gateways that ``ppl up`` runs on one socket: the group's name, its number from 1, their total."""

    group: str
    number: int
    total: int


class Gateway:
    """The parts of one gateway. The constructor does no I/O, so that it starts without Redis.

    Args:
        member: which of several gateways on one socket this is; None if it is alone.

    Attributes:
        arrivals: uploads of estimates for the background.
        budget: bytes held in memory by requests.
        clock: nothing is deleted by its age after it was set.
        shutting_down: streams stop when this is set.
        streams: open streams of events.
    """

    def __init__(self, settings: Settings, member: Member | None = None) -> None:
        self.settings = settings
        self._member = member
        self.metrics = Metrics()
        self.threads = Threads(settings.decode_threads, settings.max_videos + AT_ONCE)
        self.budget = RequestLimit(settings.max_pending_bytes, self.metrics, _BUDGET_SPENT)
        self.video_slots = RequestLimit(settings.max_videos, self.metrics, _VIDEOS_TAKEN)
        self.streams = RequestLimit(_MAX_STREAMS, self.metrics, _STREAMS_OPEN)
        self._sync_redis = redis_client(settings.redis_url)
        self.redis = async_redis_client(settings.redis_url)
        self.workers = LiveWorkers(self.redis)
        self._sender = Sender(settings.redis_url)
        self._reply_to = routing.reply_key(uuid.uuid4().hex)

        self.versions = Versions(open_versions(settings))
        self._prior_pictures: dict[PriorKey, bytes] = {}  # the oldest first; only the thread that draws changes it

        self.keys = KeyStore.open(settings)
        self.jobs = JobStore(self._sync_redis)
        self.events = EventLog(self._sync_redis)
        self.files = JobFiles.open(settings)
        self.datasets = DatasetFiles.open(settings)
        self.training = TrainingParts(settings, self.threads, self.jobs, self.files, self.datasets, self.versions.store)
        self.queue = JobQueue(self.jobs, PaceBook(self._sync_redis), lambda: len(self.workers.live["training"]))
        self.job_counts = JobCounts(self._sync_redis, self.jobs)
        self.webhooks = WebhookSender(
            self.redis, self.jobs, self.threads.io, self.webhook_secret, private=settings.webhook_private
        )

        send = partial(self.threads.send, self._sender.send_batch)
        self.batcher = make_batcher(settings, send, self._reply_to, self.workers, self.metrics)
        self.category_queues = CategoryQueue.of_settings(settings, self.metrics, self._reply_to)
        batcher_of = find_batchers(self.batcher, self.category_queues)
        self.pipeline = Pipeline(settings, self.threads, batcher_of, self.metrics)
        self.estimates = open_estimates(settings)
        self.arrivals = Arrivals(settings, self.threads, self.estimates, self.versions)
        self.background = BackgroundRunner(self.pipeline, self.estimates, self.versions)

        self._loops: list[asyncio.Task[None]] = []
        self._counted_at = -_COUNT_EVERY_S
        self.clock = ClockWatch()
        self.shutting_down = False

    async def start(self) -> None:
        """Start the background loops."""
        replies = partial(read_replies, self.settings.redis_url, self._reply_to, self.batcher.deliver)
        loops: tuple[tuple[str, float, Callable[[], Awaitable[None]]], ...] = (
            ("replies", _RESTART_S, replies),  # endless by itself
            ("workers", _REFRESH_EVERY_S, partial(refresh_workers, self.workers, self.batcher)),
            ("reconcile", routing.RECONCILE_EVERY_S, self._reconcile),
            ("webhooks", _POLL_EVERY_S, self.webhooks.start_due),
            ("estimates", _POLL_EVERY_S, self.background.start_waiting),
            ("uploads", clean_every_s(self.settings), self._clean),
            ("memory", _RELEASE_EVERY_S, partial(self.threads.io, release_memory)),
        )
        if self._member:
            loops = (*loops, ("metrics", routing.HEARTBEAT_EVERY_S, partial(self._publish_metrics, self._member)))
        if isinstance(self.versions.store, SharedVersions):
            loops = (
                *loops,
                ("versions", POLL_EVERY_S, partial(self._poll_versions, self.versions.store)),
                ("estimates of all gateways", POLL_EVERY_S, self._poll_estimates),
                ("claims", POLL_EVERY_S, partial(self.threads.io, self.estimates.renew)),
            )
        for queue in self.category_queues:
            name = ",".join(queue.categories)
            loops = (
                *loops,
                (f"replies of {name}", _RESTART_S, queue.read_replies),
                (f"workers of {name}", _REFRESH_EVERY_S, queue.refresh),
            )
        self._loops = [asyncio.create_task(_repeat(*loop), name=loop[0]) for loop in loops]

    async def stop(self) -> None:
        """Stop the loops and close connections, after the last request was answered."""
        self.shutting_down = True
        await cancel_tasks(self._loops)
        await self.background.close()
        await self.webhooks.close()
        await self.batcher.close()
        for queue in self.category_queues:
            await queue.close()
        self.threads.shutdown()
        await self.redis.aclose()
        self._sender.close()
        self._sync_redis.close()

    def webhook_secret(self) -> str:
        """Return the secret that signs webhooks. Raises StoreCorrupt, StoreUnavailable, OSError."""
        configured = self.settings.webhook_secret
        return webhook_secret(self.settings, configured.get_secret_value() if configured else None)

    async def draw_prior(self, *key: *PriorKey) -> bytes:
        """Return a prior as a PNG; one that was drawn before does not wait for others to be drawn."""
        drawn = self._prior_pictures.get(key)
        return await self.threads.draw(self._draw_prior, key) if drawn is None else drawn

    def _draw_prior(self, key: PriorKey) -> bytes:
        kept = self._prior_pictures
        if key not in kept:
            category, version, _, size = key
            kept[key] = png(prior_picture(self.versions.prior(category, version), size))
            while len(kept) > 1 and sum(map(len, kept.values())) > _PRIOR_PICTURE_BYTES:
                del kept[next(iter(kept))]
        return kept[key]

    async def exposition(self) -> bytes:
        """Return the current metrics in Prometheus's text format."""
        await self._update_gauges()
        workers = [worker for live in self.workers.live.values() for worker in live]
        included = workers if self.settings.metrics_include_workers else ()
        return await self.threads.io(self.metrics.exposition, included, await self._all_gateways())

    async def _all_gateways(self) -> list[Exposition]:
        """Return the metrics of all gateways on this one's socket; empty if it is alone."""
        if not (member := self._member):
            return []
        own = self.metrics.own_exposition()
        texts = {number: own if number == member.number else None for number in range(1, member.total + 1)}
        others = [number for number, text in texts.items() if text is None]
        with suppress(*NO_ANSWER):
            async with asyncio.timeout(_REDIS_METRICS_S):
                keys = [routing.gateway_key(member.group, number) for number in others]
                texts |= dict(zip(others, await self.redis.mget(keys), strict=True))
        return [Exposition("gateway", str(number), text.decode()) for number, text in texts.items() if text]

    async def _publish_metrics(self, member: Member) -> None:
        """Write this gateway's metrics to Redis, where the gateway that is scraped reads those of all."""
        await self._update_gauges()
        key, text = routing.gateway_key(member.group, member.number), self.metrics.own_exposition()
        await self.redis.set(key, text, ex=routing.HEARTBEAT_TTL_S)

    async def _update_gauges(self) -> None:
        metrics = self.metrics
        batchers = [self.batcher, *(queue.batcher for queue in self.category_queues)]
        metrics.waiting.set(sum(batcher.waiting for batcher in batchers))
        metrics.pending.set(sum(batcher.pending for batcher in batchers))
        metrics.in_flight.set(sum(batcher.in_flight for batcher in batchers))
        for queue in self.category_queues:
            for category in queue.categories:
                metrics.category_redis_up.labels(category).set(queue.workers.has_answered)
                metrics.category_workers.labels(category).set(len(queue.workers.live["inference"]))
        for kind in routing.KINDS:
            metrics.workers.labels(kind).set(len(self.workers.live[kind]))
        try:
            async with asyncio.timeout(_REDIS_METRICS_S):
                for kind in routing.KINDS:
                    metrics.messages.labels(kind).set(await self._count_messages(kind))
                if time.monotonic() - self._counted_at > _COUNT_EVERY_S:
                    self._counted_at = time.monotonic()
                    for status, count in (await self.threads.io(self.job_counts.count)).items():
                        metrics.jobs.labels(status).set(count)
        except NO_ANSWER as error:
            log.warning("metrics of Redis are missing: %s", error or f"no answer within {_REDIS_METRICS_S:g} s")
            metrics.redis_up.set(0)
        else:
            metrics.redis_up.set(1)

    async def _count_messages(self, kind: routing.Kind) -> int:
        batches = [routing.batch_queue_key(priority) for priority in routing.PRIORITIES]
        keys = batches if kind == "inference" else [routing.queue_key(kind)]
        return sum([await self.redis.llen(key) for key in keys])

    async def wake_trainers(self) -> None:
        """Send missing messages of waiting jobs now, not at the next reconciliation."""
        await self.threads.io(self.jobs.reconcile, self._sender.send_training)

    async def _reconcile(self) -> None:
        sent = await self.threads.io(self.jobs.reconcile, self._sender.send_training, exclusive=True)
        if sent:
            log.info("messages sent again, no worker had them: jobs=%s", ",".join(sorted(sent)))

    async def _poll_versions(self, store: SharedVersions) -> None:
        with suppress(StoreUnavailable):  # which is logged where it is raised
            await self.threads.io(store.poll)
            await self.threads.io(self.datasets.poll)
            await self.threads.io(self.keys.follow)

    async def _poll_estimates(self) -> None:
        with suppress(StoreUnavailable):
            await self.threads.io(self.estimates.poll)

    async def _clean(self) -> None:
        io, settings = self.threads.io, self.settings
        await io(self.datasets.sweep)
        if self.clock.was_set():
            return
        uploads = await io(remove_stale_jobs, self.files, self.jobs, settings.stale_upload_s)
        for root in (self.datasets.root, self.versions.store.root):
            uploads += await io(remove_stale_uploads, root, settings.stale_upload_s)
        if isinstance(self.versions.store, SharedVersions) and (count := await io(self.versions.store.sweep_objects)):
            log.info("removed %d objects of publications that failed", count)
        estimates = await io(self.estimates.sweep, settings.background_kept_s, settings.stale_upload_s)
        jobs = await io(trim_jobs, self._sync_redis, self.jobs, settings.ended_jobs_kept, settings.idempotency_ttl_s)
        for what, removed in (("old estimates", estimates), ("stale uploads", uploads), ("old jobs", jobs)):
            if removed:
                log.info("removed %d %s: %s", len(removed), what, ",".join(removed[:20]))


def clean_every_s(settings: Settings) -> float:
    """Return how often to delete what has expired: every ten minutes, or twice in the shortest time of retention."""
    shortest = min(settings.background_kept_s, settings.stale_upload_s, settings.idempotency_ttl_s)
    return min(_CLEAN_EVERY_S, max(1.0, shortest / 2))


async def _gateway_of(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


# parameters of routes
CurrentGateway = Annotated[Gateway, Depends(_gateway_of)]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]


def new_router(tag: str) -> APIRouter:
    """Create a router whose operations have the tag, and are named as their functions in generated clients."""
    return APIRouter(tags=[tag], generate_unique_id_function=lambda route: route.name)


async def _repeat(name: str, seconds: float, action: Callable[[], Awaitable[None]]) -> None:
    """Repeat an action, whatever it raises; log an outage of Redis once."""
    away = False
    while True:
        try:
            await action()
            away = False
        except QUEUE_ERRORS as error:
            if not away:
                log.warning("Redis does not answer: %s", error)
            away = True
        except Exception:  # a gateway without its loops looks alive and is not
            log.exception("loop failed, trying again: loop=%s", name)
        await asyncio.sleep(seconds)
