"""Events of jobs over HTTP: as pages, and as a stream that is taken up again without a gap; pause and resume."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator

import httpx
import pytest

from service.contract import routing
from service.contract.jobs.store import JobStatus, NewJob
from service.training import event_stream
from service.training.event_stream import stream_events
from tests.service.gateway.test_server import Server, server  # noqa: F401 - a fixture
from tests.support.jobs import move as move_job

SSE = {"Accept": "text/event-stream"}


@pytest.fixture
def job_id(http) -> str:
    return http.gateway.jobs.create(NewJob("dog", {"steps": 10}, 10)).id


def move(http, job_id: str, *statuses: JobStatus) -> None:
    move_job(http.gateway.jobs, job_id, *statuses)


def parsed(text: str) -> list[dict[str, str]]:
    """Blocks of a stream as members by name; comments under "" """
    blocks = [block for block in text.split("\n\n") if block]
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]


def events_in(text: str) -> list[dict[str, str]]:
    return [block for block in parsed(text) if "event" in block]


# pages


async def test_page_of_events(http, job_id):
    move(http, job_id, JobStatus.QUEUED, JobStatus.RUNNING)
    page = (await http.get(f"/train-jobs/{job_id}/events", params={"limit": 2})).json()
    assert [(item["id"], item["kind"], item["data"]) for item in page["items"]] == [
        (1, "status", {"status": "validating"}),
        (2, "status", {"status": "queued"}),
    ]
    assert (page["has_more"], page["next"]) == (True, 2)
    rest = (await http.get(f"/train-jobs/{job_id}/events", params={"after": page["next"]})).json()
    assert [item["id"] for item in rest["items"]] == [3]
    assert (rest["has_more"], rest["next"]) == (False, 3)


@pytest.mark.parametrize("query", ["after=-1", "after=x", "limit=0", "limit=501", f"after={2**80}"])
async def test_bad_pages_are_refused(http, job_id, problem, query):
    problem(await http.get(f"/train-jobs/{job_id}/events?{query}"), 422, "bad_request")


async def test_events_of_an_unknown_job(http, problem):
    for headers in ({}, SSE):
        problem(await http.get("/train-jobs/0123456789abcdef/events", headers=headers), 404, "unknown_job")
    problem(await http.get("/train-jobs/0123456789abcdef/checkpoints"), 404, "unknown_job")


async def test_checkpoints_of_a_job_without_any(http, job_id):
    assert (await http.get(f"/train-jobs/{job_id}/checkpoints")).json() == {"items": []}


# the stream


@pytest.mark.parametrize(
    ("accept", "stream"),
    [
        ("text/event-stream", True),
        ("application/json, text/event-stream;q=0.5", False),
        ("application/json;q=0.5, text/event-stream", True),
        ("application/json, text/event-stream", True),
        ("text/event-stream;q=much", True),
        ("text/event-stream; charset=utf-8; q=0.0", False),
        ("TEXT/EVENT-STREAM", True),
        ("text/event-stream;q=0", False),
        ("*/*", False),
        ("", False),
    ],
)
async def test_stream_is_for_who_names_it(http, job_id, accept, stream):
    move(http, job_id, JobStatus.CANCELLED)
    response = await http.get(f"/train-jobs/{job_id}/events", headers={"Accept": accept})
    assert response.headers["content-type"].startswith("text/event-stream" if stream else "application/json")


async def test_stream_of_an_ended_job_ends_after_completed(http, job_id):
    move(http, job_id, JobStatus.QUEUED)
    http.gateway.jobs.cancel(job_id)
    response = await http.get(f"/train-jobs/{job_id}/events", headers=SSE)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert "retry: 2000" in response.text
    events = events_in(response.text)
    assert [(item["id"], item["event"]) for item in events] == [
        ("1", "status"),
        ("2", "status"),
        ("3", "status"),
        ("4", "completed"),
    ]
    assert json.loads(events[-1]["data"])["data"]["status"] == "cancelled"
    for last, ids in (("0", "1234"), ("2", "34"), ("3", "4")):
        again = await http.get(f"/train-jobs/{job_id}/events", headers={**SSE, "Last-Event-ID": last})
        assert "".join(item["id"] for item in events_in(again.text)) == ids
    first = await http.get(f"/train-jobs/{job_id}/events", headers={**SSE, "Last-Event-ID": ""})
    assert len(events_in(first.text)) == 4
    over = await http.get(f"/train-jobs/{job_id}/events", headers={**SSE, "Last-Event-ID": "4"})
    assert (over.status_code, over.content) == (204, b"")


@pytest.mark.parametrize("last", ["x", "-1", "1-0", "²", "9" * 30, "0" * 20 + "9" * 30, "0" * 5000])
async def test_last_event_id_that_is_none_is_refused(http, job_id, problem, last):
    headers = {**SSE, "Last-Event-ID": last.encode()}
    problem(await http.get(f"/train-jobs/{job_id}/events", headers=headers), 400, "bad_cursor")


async def collect(stream: AsyncIterator[bytes], until: str) -> str:
    text = ""
    async for data in stream:
        text += data.decode()
        if until in text:
            break
    return text


async def test_quiet_stream_has_heartbeats_and_ends_with_the_gateway(http, job_id):
    leaving = []
    stream = stream_events(http.gateway.redis, job_id, 1, lambda: bool(leaving), heartbeat_s=0.05)
    async with asyncio.timeout(20):
        assert events_in(await collect(stream, ": ping\n\n")) == []
        leaving.append(True)
        assert [data async for data in stream] == []


async def test_stream_goes_on_over_an_outage_of_redis(http, job_id, monkeypatch):
    look, failures = event_stream._read_events, iter([True, True, False])

    async def unsteady(*arguments):
        if next(failures, False):
            raise ConnectionError_
        return await look(*arguments)

    ConnectionError_ = event_stream.QUEUE_ERRORS[0]("gone")
    monkeypatch.setattr(event_stream, "_read_events", unsteady)
    async with asyncio.timeout(20):
        text = await collect(stream_events(http.gateway.redis, job_id, 0, lambda: False), "validating")
    assert [item["id"] for item in events_in(text)] == ["1"]


async def test_stream_of_a_job_that_is_removed_ends(http, job_id, redis_client):
    stream = stream_events(http.gateway.redis, job_id, 0, lambda: False)
    async with asyncio.timeout(20):
        await collect(stream, "validating")
        http.gateway.jobs.cancel(job_id)
        http.gateway.jobs.delete(job_id)
        rest = [data async for data in stream]
    assert rest == []


async def test_live_stream_over_a_socket_is_taken_up_again_without_a_gap(server: Server, http, job_id):  # noqa: F811
    seen: list[int] = []
    url = f"{server.url}/train-jobs/{job_id}/events"

    async def read(count: int) -> None:
        headers = {**SSE, **({"Last-Event-ID": str(seen[-1])} if seen else {})}
        async with httpx.AsyncClient(timeout=30) as client, client.stream("GET", url, headers=headers) as response:
            async for line in response.aiter_lines():
                if line.startswith("id: "):
                    seen.append(int(line[4:]))
                    if len(seen) >= count:
                        return

    async def write() -> None:
        for number in range(30):
            await asyncio.to_thread(
                http.gateway.jobs.update, job_id, lambda record, number=number: record.log(f"{number}")
            )
            await asyncio.sleep(0.02)
        await asyncio.to_thread(http.gateway.jobs.cancel, job_id)

    writing = asyncio.create_task(write())
    async with asyncio.timeout(60):
        for count in (3, 11, 20, 1000):
            await read(count)
        await writing
    assert seen == list(range(1, 34)), "1 made, 30 lines, cancelled, completed"


async def test_followers_do_not_hold_up_the_end_of_the_server(server: Server, http, job_id):  # noqa: F811
    async with httpx.AsyncClient(timeout=30) as client:
        async with client.stream("GET", f"{server.url}/train-jobs/{job_id}/events", headers=SSE) as response:
            lines = response.aiter_lines()
            async with asyncio.timeout(20):
                async for line in lines:
                    if line.startswith("id:"):
                        break
                begun = time.monotonic()
                server.process.send_signal(signal.SIGTERM)
                assert [line async for line in lines if line.startswith("event")] == []
    output = server.stop()
    assert time.monotonic() - begun < 7, "not cut off after the grace of 8 s"
    assert "Cancel" not in output


# pause and resume


async def test_queued_job_is_paused_at_once_and_resumed_into_the_queue(http, job_id, redis_client):
    move(http, job_id, JobStatus.QUEUED)
    response = await http.post(f"/train-jobs/{job_id}/pause")
    assert (response.status_code, response.json()["status"]) == (200, "paused")
    redis_client.delete(routing.queue_key("training"))  # the gateway may have sent its message before the pause
    response = await http.post(f"/train-jobs/{job_id}/resume")
    assert response.json()["status"] == "queued"
    assert http.gateway.jobs.waiting_order() == [job_id]


async def test_paused_job_is_cancelled_at_once(http, job_id):
    move(http, job_id, JobStatus.QUEUED)
    await http.post(f"/train-jobs/{job_id}/pause")
    assert (await http.post(f"/train-jobs/{job_id}/cancel")).json()["status"] == "cancelled"


async def test_pause_and_resume_of_an_ended_or_unknown_job(http, job_id, problem):
    http.gateway.jobs.cancel(job_id)
    for act in ("pause", "resume"):
        problem(await http.post(f"/train-jobs/{job_id}/{act}"), 409, "job_not_active")
        problem(await http.post(f"/train-jobs/0123456789abcdef/{act}"), 404, "unknown_job")
