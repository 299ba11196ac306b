"""The gateway's connection to the workers: send batches and training jobs, read replies, watch heartbeats."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import math
import time
import uuid
from collections.abc import Callable
from typing import Any

from celery import Celery

from service.contract import routing
from service.contract.messages import BatchReply, BatchRequest, WorkerHeartbeat
from service.contract.routing import Kind

from .redis_clients import QUEUE_ERRORS, async_redis_client, redis_client

log = logging.getLogger(__name__)

# one retry at once, on a new connection: the pooled one may have broken when the server restarted
_RETRY_POLICY = {"max_retries": 1, "interval_start": 0.0, "interval_step": 0.0, "interval_max": 0.0}
_BLOCK_S = 5
_RETRY_READ_S = 0.5

# Entries of a time to come were written before Redis' clock was set back.
_COUNT_GATEWAYS = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], now + ARGV[2], '+inf')
return redis.call('ZCARD', KEYS[1])
"""


class CeleryEnvelope:
    """A message as Celery and kombu wrote it once, to fill with an argument and an id.

    To send a batch by Celery itself takes three times as long as one round trip to Redis: it builds the message,
    borrows a connection and declares the queue each time. The format stays Celery's: the template is what it puts
    into kombu's transport in memory, which shares all but the last step with the Redis transport.
    """

    def __init__(self, kind: Kind) -> None:
        app: Any = Celery(f"ppl-{kind}-envelope", set_as_current=False)
        app.conf.update({**routing.celery_options(kind, "memory://"), "broker_transport_options": {}})
        try:
            with app.connection_for_write() as connection, connection.channel() as channel:
                send_task(app, kind, None, "", connection=connection)
                self._message: dict[str, Any] = channel._get(kind)
        finally:
            app.close()
        _, keywords, self._embedded = json.loads(base64.b64decode(self._message["body"]))
        assert not keywords

    def fill(self, argument: Any, task_id: str, priority: int = 0) -> str:
        """Return the message of a task with one argument, as Redis stores it in the queue's list."""
        body = json.dumps([[argument], {}, self._embedded]).encode()
        headers = {**self._message["headers"], "id": task_id, "root_id": task_id}
        tag = str(uuid.uuid4())
        properties = {**self._message["properties"], "correlation_id": task_id, "delivery_tag": tag}
        properties["priority"] = priority
        encoded = base64.b64encode(body).decode()
        return json.dumps({**self._message, "body": encoded, "headers": headers, "properties": properties})


class Sender:
    """A blocking sender of messages to both kinds of worker. Raises :data:`~.redis_clients.QUEUE_ERRORS`."""

    def __init__(self, redis_url: str) -> None:
        self._redis = redis_client(redis_url)
        self._envelope = CeleryEnvelope("inference")
        self._celery: Any = Celery("ppl-training-sender", set_as_current=False)
        self._celery.conf.update(routing.celery_options("training", redis_url))

    def send_batch(self, request: BatchRequest, pixels: bytes | None) -> None:
        """Store the pixels until the batch's timeout and queue the batch; None if they are stored already.

        A batch whose pixels have expired is not estimated: machines' clocks are not compared. Both take one round trip.
        If the answer is lost the message is sent again: duplicates are harmless.
        """
        message = self._envelope.fill(request.model_dump(), request.batch_id, request.priority)
        with self._redis.pipeline(transaction=False) as pipe:
            if pixels is not None:
                life_s = routing.PIXELS_TTL_S if request.timeout_s is None else request.timeout_s
                pipe.set(routing.pixels_key(request.batch_id), pixels, px=max(1, math.ceil(life_s * 1000)))
            pipe.lpush(routing.batch_queue_key(request.priority), message)
            pipe.execute()

    def send_training(self, job_id: str) -> None:
        """Queue a job for a training worker; a duplicate message is harmless."""
        send_task(self._celery, "training", job_id, job_id, retry=True, retry_policy=_RETRY_POLICY)

    def close(self) -> None:
        """Close the connections."""
        self._celery.close()
        self._redis.close()


class LiveWorkers:
    """The workers whose heartbeats were in Redis at the last :meth:`refresh`, and the gateways that share them.

    Attributes:
        live: the live workers of each kind.
        gateways: number of gateways that refreshed in the last 10 s, this one included.
        incompatible: number of live workers whose heartbeat is of another release.
    """

    def __init__(self, client: Any) -> None:
        self._redis, self._gateway = client, uuid.uuid4().hex
        self._last_seen = dict.fromkeys(routing.KINDS, float("-inf"))
        self.live: dict[Kind, list[WorkerHeartbeat]] = {kind: [] for kind in routing.KINDS}
        self.incompatible = 0
        self.gateways = 1
        self._seen_lately: set[Kind] = set()
        self._has_answered: bool | None = None  # None before the first refresh

    @property
    def has_answered(self) -> bool:
        """Whether Redis answered at the last :meth:`refresh`; false before the first."""
        return bool(self._has_answered)

    async def refresh(self) -> None:
        """Read all heartbeats. If Redis fails, forget the workers and raise its error."""
        found: dict[Kind, list[WorkerHeartbeat | None]] = {kind: [] for kind in routing.KINDS}
        answered, lately = False, dict.fromkeys(routing.KINDS, 0)
        try:
            found = {kind: await self._heartbeats(kind) for kind in routing.KINDS}
            lately = {kind: await self._redis.exists(routing.seen_key(kind)) for kind in routing.KINDS}
            self.gateways = await self._count_gateways()
            answered = True
        finally:
            if self._has_answered is False:
                # heartbeats may have expired in the outage: give workers time to write new ones
                self._last_seen = dict.fromkeys(routing.KINDS, time.monotonic())
            self._has_answered = answered
            self.live = {kind: [beat for beat in beats if beat] for kind, beats in found.items()}
            self.incompatible = sum(beats.count(None) for beats in found.values())
        for kind in routing.KINDS:
            if found[kind]:  # one of another release answers, too: with the reason why it can't be used
                self._last_seen[kind] = time.monotonic()
        self._seen_lately = {kind for kind in routing.KINDS if lately[kind]}

    def are_gone(self, kind: Kind) -> bool:
        """Return whether no worker of this kind was seen for 15 s, longer than a restart takes, by any gateway.

        False while Redis does not answer.
        """
        was_seen = kind in self._seen_lately or time.monotonic() - self._last_seen[kind] <= routing.ABSENT_S
        return self.has_answered and not was_seen

    async def _count_gateways(self) -> int:
        """Write this gateway's heartbeat, and return the number of gateways that have one."""
        count: int = await self._redis.eval(
            _COUNT_GATEWAYS, 1, routing.GATEWAYS, self._gateway, routing.HEARTBEAT_TTL_S
        )
        return count

    async def _heartbeats(self, kind: Kind) -> list[WorkerHeartbeat | None]:
        ids = await self._redis.zrange(routing.workers_key(kind), 0, -1)
        keys = [routing.worker_key(kind, worker_id.decode()) for worker_id in ids]
        found = await self._redis.mget(keys) if keys else []
        return [WorkerHeartbeat.parse(data) for data in found if data is not None]


async def read_replies(url: str, key: str, deliver: Callable[[BatchReply], None]) -> None:
    """Deliver every reply pushed to the list `key`, forever; retry while Redis does not answer."""
    # a blocking read ends by itself after _BLOCK_S: only a dead connection takes longer
    client = async_redis_client(url, timeout_s=3 * _BLOCK_S)
    away = False
    try:
        while True:
            try:
                popped = await client.blpop([key], timeout=_BLOCK_S)
            except QUEUE_ERRORS as error:
                if not away:
                    log.warning("Redis does not answer, no replies can be read: %s", error)
                away = True
                await asyncio.sleep(_RETRY_READ_S)
                continue
            if away:
                log.info("Redis is back, replies are read again")
                away = False
            if popped is not None:
                _deliver(popped[1], deliver)
    finally:
        await client.aclose()


def send_task(app: Any, kind: Kind, argument: Any, task_id: str, **options: Any) -> None:
    """Send a task with one argument by Celery."""
    app.send_task(
        routing.ESTIMATE_TASK if kind == "inference" else routing.TRAIN_TASK,
        args=(argument,),
        task_id=task_id,
        queue=kind,
        # shown by monitors only, and a fifth of the time that sending takes
        argsrepr="",
        kwargsrepr="",
        **options,
    )


def _deliver(data: bytes, deliver: Callable[[BatchReply], None]) -> None:
    try:
        reply = BatchReply.unpack(data)
    except ValueError as error:
        log.error("dropped a malformed reply: %s", error)
        return
    try:
        deliver(reply)
    except Exception:  # one reply must not end the loop that all requests depend on
        log.exception("reply not delivered: batch=%s", reply.batch_id)
