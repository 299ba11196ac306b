"""The queue of the categories that have a Redis server of their own (PPL_REDIS_BY_CATEGORY)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial

from service.runtime.concurrency import Pool
from service.runtime.metrics import Metrics
from service.runtime.redis_clients import NO_ANSWER, async_redis_client
from service.runtime.settings import Settings
from service.runtime.worker_queue import LiveWorkers, Sender, read_replies

from .batching import Batcher, Send

log = logging.getLogger(__name__)

_CHECK_S = 2.0


def make_batcher(settings: Settings, send: Send, reply_to: str, workers: LiveWorkers, metrics: Metrics) -> Batcher:
    """Return the batcher of one server's inference workers."""
    return Batcher(
        send,
        reply_to,
        batch_limit=settings.batch_limit,
        queue_limit=settings.queue_limit,
        timeout_s=settings.estimate_timeout_s,
        late_s=settings.late_batch_s,
        wait_s=settings.batch_wait_s,
        live_workers=lambda: len(workers.live["inference"]),
        live_gateways=lambda: workers.gateways,
        workers_are_gone=lambda: workers.are_gone("inference"),
        metrics=metrics,
    )


async def refresh_workers(workers: LiveWorkers, batcher: Batcher) -> None:
    """Read the heartbeats, and fail the tickets that wait for workers that are gone. Raises NO_ANSWER."""
    started = time.monotonic()
    await workers.refresh()
    batcher.fail_without_workers(started)


class CategoryQueue:
    """The batches, replies and inference workers of one server, independent of other servers.

    Its workers run with PPL_REDIS_URL of this server and write their heartbeats there. It sends from its own thread, as
    sending may hang for seconds during an outage, which must delay its own categories only.

    Args:
        categories: those that use it.
    """

    def __init__(self, url: str, categories: list[str], settings: Settings, metrics: Metrics, reply_to: str) -> None:
        self.categories, self._url, self._reply_to = categories, url, reply_to
        self._redis = async_redis_client(url)
        self.workers = LiveWorkers(self._redis)
        self._sender, self._thread = Sender(url), Pool(1, f"send-{categories[0]}")
        self.batcher = make_batcher(
            settings, partial(self._thread, self._sender.send_batch), reply_to, self.workers, metrics
        )

    @classmethod
    def of_settings(cls, settings: Settings, metrics: Metrics, reply_to: str) -> list[CategoryQueue]:
        """Return a queue for each server that is not the main one; categories with the same server share it."""
        by_url: dict[str, list[str]] = {}
        for category, url in settings.redis_by_category.items():
            if url != settings.redis_url:
                by_url.setdefault(url, []).append(category)
        return [cls(url, categories, settings, metrics, reply_to) for url, categories in by_url.items()]

    async def read_replies(self) -> None:
        """Deliver replies until cancelled."""
        await read_replies(self._url, self._reply_to, self.batcher.deliver)

    async def refresh(self) -> None:
        """See :func:`refresh_workers`."""
        await refresh_workers(self.workers, self.batcher)

    async def check(self) -> str:
        """Return "ok" or what is wrong, for the readiness of the gateway."""
        try:
            async with asyncio.timeout(_CHECK_S):
                await self.refresh()
        except NO_ANSWER:
            return "does not answer"
        return "ok" if self.workers.live["inference"] else "no inference worker is running"

    async def close(self) -> None:
        """Cancel what is being sent and close the connections."""
        await self.batcher.close()
        self._thread.shutdown(wait=False, cancel_futures=True)
        await self._redis.aclose()
        self._sender.close()


def find_batchers(main: Batcher, queues: list[CategoryQueue]) -> Callable[[str], Batcher]:
    """Return the function from a category to its batcher: `main` for categories without a queue of their own."""
    by_category = {category: queue.batcher for queue in queues for category in queue.categories}
    return lambda category: by_category.get(category, main)
