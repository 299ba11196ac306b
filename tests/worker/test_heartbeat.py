from __future__ import annotations

import time

import pytest
import redis

from service.contract import routing
from service.contract.messages import WorkerHeartbeat
from worker.__main__ import main
from worker.heartbeat import Heartbeat
from worker.inference import Keepalive


def heartbeat(client: redis.Redis, **changes: object) -> Heartbeat:
    values = {
        "client": client,
        "kind": "inference",
        "worker_id": "w1",
        "device": "cpu",
        "metrics": lambda: "m 1\n",
        "is_busy": lambda: True,
        "every_s": 0.05,
        **changes,
    }
    return Heartbeat(**values)  # type: ignore[arg-type]


def read(client: redis.Redis) -> WorkerHeartbeat | None:
    data = client.get(routing.worker_key("inference", "w1"))
    return WorkerHeartbeat.parse(data) if data else None


def test_beating_worker_is_seen_and_one_that_stopped_is_gone(redis_client: redis.Redis) -> None:
    beats = heartbeat(redis_client)
    beats.start()
    time.sleep(0.12)
    first = read(redis_client)
    assert first is not None
    assert (first.kind, first.device, first.busy, first.metrics) == ("inference", "cpu", True, "m 1\n")
    assert 0 < redis_client.ttl(routing.worker_key("inference", "w1")) <= routing.HEARTBEAT_TTL_S
    scored = redis_client.zscore(routing.workers_key("inference"), "w1")
    time.sleep(0.12)
    assert redis_client.zscore(routing.workers_key("inference"), "w1") > scored
    beats.stop()
    assert read(redis_client) is None
    assert redis_client.zcard(routing.workers_key("inference")) == 0


def test_worker_that_was_killed_leaves_the_index_with_its_heartbeat(redis_client: redis.Redis) -> None:
    redis_client.zadd(routing.workers_key("inference"), {"killed": time.time(), "slow": time.time() - 20})
    redis_client.set(routing.worker_key("inference", "slow"), "{}")
    heartbeat(redis_client).run_once()
    assert redis_client.zrange(routing.workers_key("inference"), 0, -1) == [b"slow", b"w1"]


def test_heartbeat_outlives_a_server_that_is_away() -> None:
    nowhere = redis.Redis(port=1, socket_connect_timeout=0.1, retry=None)
    beats = heartbeat(nowhere)
    beats.start()
    time.sleep(0.15)
    assert beats._thread.is_alive()
    beats.stop()


def test_message_in_hand_keeps_its_time_and_no_other_comes_into_being(redis_client: redis.Redis) -> None:
    key = routing.unacked_index_key("inference")
    redis_client.zadd(key, {"tag": 1.0, "other": 2.0})
    keepalive = Keepalive(redis_client, "inference", time.time, visibility_s=0.15)
    keepalive.start()
    keepalive.tag = "tag"
    time.sleep(0.2)
    assert time.time() - redis_client.zscore(key, "tag") < 5
    assert redis_client.zscore(key, "other") == 2.0
    keepalive.tag = "acknowledged"
    time.sleep(0.2)
    assert redis_client.zscore(key, "acknowledged") is None
    keepalive.stop()


def test_health_asks_for_a_worker_on_this_host(
    redis_client: redis.Redis,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PPL_REDIS_URL", redis_url)
    assert main(["health"]) == 1
    heartbeat(redis_client).run_once()
    assert main(["health"]) == 0
    assert "inference worker w1 is alive" in capsys.readouterr().out
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    assert main(["health"]) == 1
    monkeypatch.setenv("PPL_REDIS_URL", "redis://127.0.0.1:1/0")
    assert main(["health"]) == 1
