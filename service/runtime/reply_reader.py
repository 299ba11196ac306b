"""The loop that takes replies off this gateway's list in Redis."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from service.contract.messages import BatchReply
from service.http.problems import QUEUE_ERRORS

log = logging.getLogger(__name__)

_BLOCK_S = 5
_AGAIN_S = 0.5


def async_client(url: str, timeout_s: float = 5.0) -> Any:
    """An asynchronous client that gives up soon; each caller decides what then."""
    return redis.asyncio.Redis.from_url(
        url,
        socket_connect_timeout=2,
        socket_timeout=timeout_s,
        health_check_interval=15,
        retry=Retry(NoBackoff(), 1),
    )


async def read_replies(url: str, key: str, deliver: Callable[[BatchReply], None]) -> None:
    """Hand over every reply pushed to a list, for ever; waits out a server that is away."""
    # a blocking read ends by itself: only a dead connection takes longer
    client = async_client(url, timeout_s=3 * _BLOCK_S)
    away = False
    try:
        while True:
            try:
                popped = await client.blpop([key], timeout=_BLOCK_S)
            except QUEUE_ERRORS as error:
                if not away:
                    log.warning("no replies can be read, Redis is away: %s", error)
                away = True
                await asyncio.sleep(_AGAIN_S)
                continue
            if away:
                log.info("replies are read again")
                away = False
            if popped is not None:
                _hand_over(popped[1], deliver)
    finally:
        await client.aclose()


def _hand_over(data: bytes, deliver: Callable[[BatchReply], None]) -> None:
    try:
        reply = BatchReply.unpack(data)
    except ValueError as error:
        log.error("dropped something that is no reply: %s", error)
        return
    try:
        deliver(reply)
    except Exception:  # a reply that breaks something must not end the loop that all others wait for
        log.exception("the reply to batch %s could not be delivered", reply.batch_id)
