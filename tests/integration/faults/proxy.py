"""A TCP proxy on the loopback that can be cut and can delay what it passes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Proxy:
    """A forwarder of connections to a port of 127.0.0.1.

    Attributes:
        port: where it listens, also while it is cut.
        is_cut: connections are closed, and new ones at once.
        delay_s: wait before each piece is passed on.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self.port = 0
        self.is_cut = False
        self.delay_s = 0.0

    def cut(self) -> None:
        """Close all connections, and those that come, until :meth:`mend`."""
        self.is_cut = True
        self._loop.call_soon_threadsafe(lambda: [writer.transport.abort() for writer in self._writers])

    def mend(self) -> None:
        self.is_cut = False

    async def _serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        async with server:
            await stop.wait()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await asyncio.sleep(0)  # transports are closed in the next round

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            writer.transport.abort()
            return
        with suppress(OSError):
            onward = await asyncio.open_connection("127.0.0.1", self._target)
            ends = {writer, onward[1]}
            self._writers |= ends
            try:
                await asyncio.gather(self._pass_on(reader, onward[1]), self._pass_on(onward[0], writer))
            finally:
                self._writers -= ends
                for end in ends:
                    end.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(2**16):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


@contextmanager
def proxy_to(port: int) -> Iterator[Proxy]:
    """Run a proxy during the block."""
    proxy, ready, stop = Proxy(port), threading.Event(), asyncio.Event()

    def run() -> None:
        proxy._loop.run_until_complete(proxy._serve(ready, stop))
        proxy._loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield proxy
    finally:
        proxy._loop.call_soon_threadsafe(stop.set)
        thread.join(10)
