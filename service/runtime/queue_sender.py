"""Into the queue: a batch with its pixels, and the message that wakes a training worker. Blocking; for threads."""

from __future__ import annotations

import logging
from typing import Any

import redis
from celery import Celery
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.contract import routing
from service.contract.messages import BatchRequest

from .celery_envelope import Envelope, send

log = logging.getLogger(__name__)

# once more at once, on a new connection: the pooled one may have died with a restarted server
_RETRY_POLICY = {"max_retries": 1, "interval_start": 0.0, "interval_step": 0.0, "interval_max": 0.0}


def redis_client(url: str) -> Any:
    """A synchronous client that gives up soon: a request waits for what it sends."""
    return redis.Redis.from_url(
        url, socket_connect_timeout=2, socket_timeout=5, health_check_interval=15, retry=Retry(NoBackoff(), 1)
    )


class Sender:
    """Puts messages into the queues of both kinds of worker.

    Raises on sending what :data:`service.http.problems.QUEUE_ERRORS` names.
    """

    def __init__(self, redis_url: str) -> None:
        self._redis = redis_client(redis_url)
        self._batches = Envelope("inference")
        self._trainings = _celery("training", redis_url)

    def send_batch(self, request: BatchRequest, pixels: bytes | None) -> None:
        """Store the pixels under a key of their own, which expires, and send the batch; None: they are stored.

        Both in one go. Where its answer is lost they are sent again: a message too many does no harm.
        """
        message = self._batches.fill(request.model_dump(), request.batch_id)
        with self._redis.pipeline(transaction=False) as pipe:
            if pixels is not None:
                pipe.set(routing.pixels_key(request.batch_id), pixels, ex=routing.PIXELS_TTL_S)
            pipe.lpush(routing.queue_key("inference"), message)
            pipe.execute()

    def send_training(self, job_id: str) -> None:
        """Wake a training worker for a job; a message too many does no harm."""
        send(self._trainings, "training", job_id, job_id, retry=True, retry_policy=_RETRY_POLICY)

    def close(self) -> None:
        """Close the connections."""
        self._trainings.close()
        self._redis.close()


def _celery(kind: routing.Kind, redis_url: str) -> Any:
    app = Celery(f"ppl-{kind}-sender", set_as_current=False)
    app.conf.update(routing.celery_options(kind, redis_url))
    return app
