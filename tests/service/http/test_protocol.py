"""Limits on the bytes and the time before a request is parsed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from service.http import requests as protocol


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the length of the body, once it is complete."""
    size, more = 0, scope["path"] != "/early"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
        if scope["path"] == "/slow":
            await asyncio.sleep(0.8)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8")]})
    await send({"type": "http.response.body", "body": b"%8d" % size})


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    monkeypatch.setattr(protocol, "HEAD_S", 0.5)
    monkeypatch.setattr(protocol, "REST_S", 2.0)
    config = uvicorn.Config(
        echo, host="127.0.0.1", port=0, log_level="error", lifespan="off", http=protocol.ProblemProtocol
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await task


async def talk(port: int, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """Send bytes until the connection is closed; return the whole response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    reading = asyncio.create_task(reader.read())
    try:
        for part in parts:
            if reading.done():
                break
            writer.write(part)
            await asyncio.sleep(pause_s)
        return await asyncio.wait_for(reading, 10)
    finally:
        writer.close()


def refused(answer: bytes, status: int) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    assert b"content-type: application/problem+json" in head
    document = json.loads(body)
    assert document["status"] == status
    assert b"\r\nx-request-id: %b\r\n" % document["request_id"].encode() in head + b"\r\n"
    return document


BIG = 2 * protocol.MAX_HEAD_BYTES


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nx: " + b"x" * BIG,  # a header that never ends
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * (BIG // 2),  # headers without an end
        b"GET /" + b"x" * BIG,
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * (BIG // 2),  # trailers
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: " + b"x" * BIG,
    ],
    ids=["header", "headers", "address", "trailers", "trailer"],
)
async def test_what_comes_before_a_body_is_bounded(port: int, head: bytes) -> None:
    parts = [head[start : start + 20_000] for start in range(0, len(head), 20_000)]
    answer = await talk(port, *parts, pause_s=0.02)
    assert str(protocol.MAX_HEAD_BYTES) in refused(answer, 431)["detail"]


async def test_a_long_body_and_many_requests_are_no_long_head(port: int) -> None:
    body = b"x" * (4 * protocol.MAX_HEAD_BYTES)
    post = b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body)
    headers = b"x: " + b"y" * (protocol.MAX_HEAD_BYTES // 2)
    get = b"GET / HTTP/1.1\r\n" + headers + b"\r\n\r\n"
    last = b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n"
    answer = await talk(port, post, body[:100_000], body[100_000:], get, get, get, last)
    assert answer.count(b"HTTP/1.1 200") == 5
    assert b"%8d" % len(body) in answer


async def test_a_head_that_does_not_come_is_not_waited_for(port: int) -> None:
    begun = asyncio.get_running_loop().time()
    assert await talk(port) == b""  # no request, no response
    slow = b"GET / HTTP/1.1\r\nx: y" + b"y" * 40
    answer = await talk(port, *(slow[place : place + 1] for place in range(len(slow))), pause_s=0.05)
    assert "0.5 s" in refused(answer, 408)["detail"]
    assert asyncio.get_running_loop().time() - begun < 6


async def test_a_request_that_is_served_for_long_is_no_slow_head(port: int) -> None:
    post = b"POST /slow HTTP/1.1\r\ncontent-length: 4\r\n\r\n"
    answer = await talk(port, post, b"ab", b"cd", b"GET / HTT", pause_s=0.7)
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert b"       4" in answer


async def test_rest_of_a_body_that_was_answered_already_is_read_for_a_while_only(port: int) -> None:
    begun = asyncio.get_running_loop().time()
    post = b"POST /early HTTP/1.1\r\ncontent-length: 100000\r\n\r\n"
    answer = await talk(port, post, *[b"x"] * 100, pause_s=0.1)
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert asyncio.get_running_loop().time() - begun < 6


async def test_connection_goes_on_once_the_rest_of_a_body_came(port: int) -> None:
    post = b"POST /early HTTP/1.1\r\ncontent-length: 5\r\n\r\n"
    last = b"POST / HTTP/1.1\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc"
    answer = await talk(port, post, b"xx", b"xxx", *[b""] * 25, last, pause_s=0.1)
    assert answer.count(b"HTTP/1.1 200") == 2, answer
    assert answer.endswith(b"       3")


async def test_request_behind_another_may_take_its_time(port: int) -> None:
    first = b"POST /a HTTP/1.1\r\ncontent-length: 1\r\n\r\nx"
    both = first + b"POST /b HTTP/1.1\r\ncontent-length: 30\r\nconnection: close\r\n\r\n"
    answer = await talk(port, both, *[b"y"] * 30, pause_s=0.1)
    assert answer.count(b"HTTP/1.1 200") == 2, answer
    assert answer.endswith(b"      30")
