from __future__ import annotations

import json

import pytest
import redis
from celery import Celery

from service.contract import routing


@pytest.mark.parametrize("kind", routing.KINDS)
def test_message_lands_in_the_documented_list(redis_client: redis.Redis, redis_url: str, kind: routing.Kind) -> None:
    app = Celery("sender", set_as_current=False)
    app.conf.update(routing.celery_options(kind, redis_url))
    with app.connection_for_write() as connection:
        app.send_task(routing.task_name(kind), args=["x"], task_id="job-1", connection=connection)
    (message,) = redis_client.lrange(routing.queue_key(kind), 0, -1)
    assert json.loads(message)["headers"]["id"] == "job-1"
    assert all(key.startswith(routing.key_prefix(kind).encode()) for key in redis_client.scan_iter("*"))
    app.close()


def test_lost_messages_are_looked_for_within_seconds() -> None:
    for kind in routing.KINDS:
        options = routing.broker_options(kind)
        period = options["unacked_restore_interval"] * options["unacked_restore_throttle"]
        assert 0 < period <= 2
        assert options["visibility_timeout"] > 3 * period


def test_kinds_share_no_key() -> None:
    assert routing.key_prefix("inference") != routing.key_prefix("training")
    assert routing.worker_key("inference", "a") != routing.worker_key("training", "a")
