"""Workers on machines whose clocks differ."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis
from celery import Celery
from kombu.transport import redis as kombu_redis

from service.contract import routing
from tests.support.clocks import set_clock
from tests.worker.test_heartbeat import heartbeat
from worker.redis_clock import RedisClock

HOUR_S = 3600.0


@pytest.fixture
def kombu_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kombu_redis, "time", kombu_redis.time)  # put back at the end


def take_message(redis_url: str, redis_client: redis.Redis) -> tuple[Celery, Any, str]:
    """Put a message into the queue and take it, as a worker does; return what holds it and its tag."""
    app = Celery("theirs", set_as_current=False)
    app.conf.update(routing.celery_options("inference", redis_url))
    app.send_task(routing.ESTIMATE_TASK, args=({},), queue="inference")
    channel = app.connection_for_read().channel()
    message = channel.basic_get("inference")
    assert message is not None
    return app, channel, message.delivery_tag


@pytest.mark.parametrize("offset_s", [HOUR_S, -HOUR_S])
def test_message_in_hand_is_redelivered_by_redis_clock_alone(
    offset_s: float, redis_url: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, kombu_clock: None
) -> None:
    """Neither does a worker whose clock is ahead take it from another, nor does one behind lose its own."""
    with monkeypatch.context() as here:
        set_clock(here, offset_s)
        clock = RedisClock(redis_client)
        clock.use_for_messages()
        app, channel, tag = take_message(redis_url, redis_client)
        key = routing.unacked_index_key("inference")
        assert redis_client.zscore(key, tag) == pytest.approx(redis_client.time()[0], abs=3)
        channel.qos.restore_visible(interval=1)
        assert redis_client.zscore(key, tag) is not None
        redis_client.zadd(key, {tag: clock.now() - routing.INFERENCE_VISIBILITY_S - 1})  # of a worker that crashed
        channel.qos.restore_visible(interval=1)
        assert redis_client.zscore(key, tag) is None
        assert redis_client.llen(routing.batch_queue_key(0)) == 1
    channel.close()
    app.close()


def test_clock_follows_redis_and_outlives_its_outage(redis_client: redis.Redis) -> None:
    nowhere = redis.Redis(port=1, socket_connect_timeout=0.1, retry=None)
    assert RedisClock(nowhere).now() == pytest.approx(time.time(), abs=1)
    seconds, microseconds = redis_client.time()
    assert RedisClock(redis_client).now() == pytest.approx(seconds + microseconds / 1e6, abs=1)


def test_worker_with_a_clock_ahead_hides_no_other(redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    heartbeat(redis_client).run_once()
    set_clock(monkeypatch, HOUR_S)
    heartbeat(redis_client, worker_id="ahead").run_once()
    assert set(redis_client.zrange(routing.workers_key("inference"), 0, -1)) == {b"w1", b"ahead"}
