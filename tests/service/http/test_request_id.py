"""A request's id, in its answer, its errors and the log."""

from __future__ import annotations

import logging
import re

import pytest
from asgi_correlation_id import CorrelationIdFilter

from service.http.requests import LOG_FORMAT


@pytest.fixture
def logged(caplog):
    caplog.handler.addFilter(CorrelationIdFilter(default_value="-"))
    caplog.handler.setFormatter(logging.Formatter(LOG_FORMAT))
    caplog.set_level(logging.INFO)
    return caplog


async def test_every_answer_has_an_id(http):
    first, second = await http.get("/priors"), await http.get("/livez")
    for answer in (first, second):
        assert re.fullmatch(r"[0-9a-f]{16}", answer.headers["x-request-id"])
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


async def test_the_clients_own_id_is_kept(http, logged):
    answer = await http.get("/priors/none", headers={"X-Request-ID": "trace-1/2"})
    assert answer.headers.get_list("x-request-id") == ["trace-1/2"]
    assert answer.json()["request_id"] == "trace-1/2"
    assert re.search(r"\[trace-1/2\] service\.access\.guard: GET /priors/none 404 in [\d.]+ ms", logged.text)


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "é", "a\tb"])
async def test_an_id_that_could_not_stand_in_a_log_is_replaced(http, given):
    answer = await http.get("/priors", headers={"X-Request-ID": given.encode()})
    assert re.fullmatch(r"[0-9a-f]{16}", answer.headers["x-request-id"])


async def test_a_fault_has_the_id_in_answer_and_log(http, logged, monkeypatch):
    monkeypatch.setattr(http.gateway.jobs, "get", lambda job_id: 1 / 0)
    answer = await http.get("/train-jobs/0123456789abcdef", headers={"X-Request-ID": "it-broke"})
    assert (answer.status_code, answer.json()["request_id"]) == (500, "it-broke")
    assert answer.headers["x-request-id"] == "it-broke"


async def test_what_a_thread_logs_has_the_id(http, logged, monkeypatch):
    def get(job_id: str) -> None:
        logging.getLogger("service.test").warning("in a thread")
        raise KeyError(job_id)

    monkeypatch.setattr(http.gateway.jobs, "get", get)
    await http.get("/train-jobs/0123456789abcdef", headers={"X-Request-ID": "mine"})
    assert "[mine] service.test: in a thread" in logged.text


async def test_failed_batch_is_logged_with_its_requests(http, make_consumer, publish, make_picture, logged):
    consumer = await make_consumer()
    from service.contract.errors import ModelFailed

    consumer.error = ModelFailed("the model raised")
    publish("dog")
    files = [("images", ("a.png", make_picture()))]
    answer = await http.post("/estimate", data={"category": "dog"}, files=files, headers={"X-Request-ID": "r1"})
    assert answer.status_code == 500
    assert re.search(r"batch failed: batch=\w+ request=r1: the model raised", logged.text)


async def test_watching_is_not_logged_and_the_rest_can_be_left_out(serve, logged):
    http = await serve()
    await http.get("/livez")
    await http.get("/metrics")
    assert "service.access.guard" not in logged.text
    await http.get("/priors")
    assert "GET /priors 200" in logged.text
    logged.clear()
    quiet = await serve(access_log=False)
    await quiet.get("/priors")
    assert "service.access.guard" not in logged.text
    await quiet.get("/priors/none")
    assert "GET /priors/none 404" in logged.text


async def test_a_path_can_not_break_the_line(http, logged):
    await http.get("/priors/a%0Ab%1b")
    lines = [line for line in logged.text.splitlines() if "service.access.guard" in line]
    assert len(lines) == 1
    assert "/priors/a%0Ab%1b" in lines[0]
