from __future__ import annotations

import logging

import pytest
import redis

from worker.redis_retries import OutageLog, connect, retry_outages


class Server:
    """Answers after some failures."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return "answer"


def test_call_waits_until_the_server_is_back_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server = Server(3, redis.ConnectionError("refused"))
    assert retry_outages(server, lambda: False, "job 1") == "answer"
    assert server.calls == 4
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "job 1: Redis is down" in caplog.text


def test_giving_up_raises_the_last_error() -> None:
    server = Server(99, redis.TimeoutError())
    with pytest.raises(redis.TimeoutError):
        retry_outages(server, lambda: server.calls == 2, "job 1")


def test_other_errors_are_not_retried() -> None:
    server = Server(99, redis.ResponseError("wrong number of arguments"))
    with pytest.raises(redis.ResponseError):
        retry_outages(server, lambda: False, "job 1")
    assert server.calls == 1


def test_client_of_a_server_that_is_not_there_fails_soon() -> None:
    with connect("redis://127.0.0.1:1/0") as client, pytest.raises(redis.ConnectionError):
        client.ping()


def test_second_outage_is_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    log = OutageLog("heartbeat")
    for _ in range(2):
        log.log_failure(redis.ConnectionError())
        log.log_failure(redis.ConnectionError())
        log.log_success()
    assert caplog.text.count("heartbeat: Redis is down") == 2
