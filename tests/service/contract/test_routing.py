from __future__ import annotations

import itertools
import json
import time

import pytest
import redis
from celery import Celery

from service.contract import routing


@pytest.mark.parametrize("kind", routing.KINDS)
def test_message_lands_in_the_documented_list(redis_client: redis.Redis, redis_url: str, kind: routing.Kind) -> None:
    app = Celery("sender", set_as_current=False)
    app.conf.update(routing.celery_options(kind, redis_url))
    with app.connection_for_write() as connection:
        app.send_task(routing.ESTIMATE_TASK, args=["x"], task_id="job-1", connection=connection)
    (message,) = redis_client.lrange(routing.queue_key(kind), 0, -1)
    assert json.loads(message)["headers"]["id"] == "job-1"
    assert all(key.startswith(routing.key_prefix(kind).encode()) for key in redis_client.scan_iter("*"))
    app.close()


def test_lost_messages_are_looked_for_within_seconds() -> None:
    for kind in routing.KINDS:
        options = routing.celery_options(kind, "")["broker_transport_options"]
        period = options["unacked_restore_interval"] * options["unacked_restore_throttle"]
        assert 0 < period <= 2
        assert options["visibility_timeout"] > 3 * period


def test_kinds_share_no_key() -> None:
    assert routing.key_prefix("inference") != routing.key_prefix("training")
    assert routing.worker_key("inference", "a") != routing.worker_key("training", "a")


@pytest.mark.parametrize("digits", [22, 24, 32])
def test_id_has_the_digits_asked_for(digits: int) -> None:
    made = routing.time_ordered_id(digits)
    assert len(made) == digits
    assert set(made) <= set("0123456789abcdef")


def test_ids_sort_within_one_millisecond_and_across_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    # 250 ns apart, over the edge of a millisecond, and all bits of chance against the order
    clock = iter(range(1_764_000_000_000_900_000, 1_764_000_000_001_100_000, 250))
    chance = iter(range(1000, 0, -1))
    monkeypatch.setattr(routing, "_last_ticks", 0)
    monkeypatch.setattr(routing.time, "time_ns", lambda: next(clock))
    monkeypatch.setattr(routing.secrets, "randbits", lambda bits: next(chance))
    made = [routing.time_ordered_id(22) for _ in range(800)]
    assert made == sorted(made)
    assert len(set(made)) == 800


@pytest.mark.parametrize("step", [0, -1_000_000])
def test_ids_sort_where_the_clock_stands_still_or_goes_back(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    clock = itertools.count(1_764_000_000_000_000_000, step)
    monkeypatch.setattr(routing, "_last_ticks", 0)
    monkeypatch.setattr(routing.time, "time_ns", lambda: next(clock))
    made = [routing.time_ordered_id(22) for _ in range(200)]
    assert made == sorted(made)
    assert made[0][:12] == f"{1_764_000_000_000:012x}"


def test_ids_sort_behind_ids_of_milliseconds_alone() -> None:
    """Ids made before had twelve digits of milliseconds and chance behind them."""
    earlier = f"{int(time.time() * 1000) - 1:012x}ffffffffff"
    assert earlier < routing.time_ordered_id(22)
