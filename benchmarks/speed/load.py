"""Closed-loop clients on the loopback: each sends a request, waits for the response, and sends the next.

They use plain sockets, because a client library would need more processor time than the server.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import uvloop

from .timing import percentile

Answered = Callable[[int, bytes], str | None]  # number of the request's kind and its answer; what is wrong with it
_LIMIT_S = 60.0  # for one answer


@dataclass
class Load:
    """The outcome of a load by some clients.

    Attributes:
        seconds: duration of the load.
        answered: successful responses within that time.
        latencies_s: latencies of the successful responses.
        failures: the number of each kind of failure.
        sent: all requests.
    """

    clients: int
    seconds: float
    answered: int = 0
    sent: int = 0
    latencies_s: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def per_s(self) -> float:
        """Return the successful responses a second."""
        return self.answered / self.seconds

    def ms(self, percent: float) -> float:
        """Return a percentile of the latencies in milliseconds; infinite without a response."""
        return 1e3 * percentile(self.latencies_s, percent) if self.latencies_s else float("inf")

    def __add__(self, other: Load) -> Load:
        """Add up two rounds with the same number of clients."""
        return Load(
            self.clients,
            self.seconds + other.seconds,
            self.answered + other.answered,
            self.sent + other.sent,
            self.latencies_s + other.latencies_s,
            self.failures + other.failures,
        )


def post(path: str, media_type: str, body: bytes) -> bytes:
    """Return the bytes of an HTTP request with keep-alive."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def closed_loop(
    urls: Sequence[str], requests: Sequence[bytes], clients: int, seconds: float, wrong: Answered | None = None
) -> Load:
    """Run clients for some seconds, shared evenly among the servers; each sends the requests in turn.

    Args:
        urls: addresses of servers, ``http://host:port``.
        wrong: checks each response with status 200.
    """
    load = Load(clients, seconds)

    async def all_clients() -> None:
        until = time.perf_counter() + seconds
        turns = zip(range(clients), itertools.cycle(urls), strict=False)
        await asyncio.gather(*(_client(url, requests, first, until, load, wrong) for first, url in turns))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(all_clients())
    return load


async def _client(
    url: str, requests: Sequence[bytes], first: int, until: float, load: Load, wrong: Answered | None
) -> None:
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        number = first
        while (started := time.perf_counter()) < until:
            kind = number % len(requests)
            number += load.clients
            load.sent += 1
            writer.write(requests[kind])
            async with asyncio.timeout(_LIMIT_S):
                status, body = await _answer(reader)
            ended = time.perf_counter()
            fault = f"status {status}" if status != 200 else wrong(kind, body) if wrong else None
            if fault:
                load.failures[fault] += 1
                continue
            load.latencies_s.append(ended - started)
            load.answered += ended <= until
    except (OSError, EOFError, TimeoutError) as error:
        load.failures[type(error).__name__] += 1
    finally:
        writer.close()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return status, await reader.readexactly(int(line[15:]))
    raise EOFError("an answer without its length")
