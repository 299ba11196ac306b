"""A real gateway in a thread, with a consumer that answers its batches, for tests of client and commands."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from service.contract.datasets.store import DatasetFiles
from service.contract.messages import BatchReply
from service.gateway.app import create_app
from service.runtime.settings import Settings
from tests.service.conftest import Consumer
from worker.jobs import Stop
from worker.settings import WorkerSettings
from worker.uploads.inspection import Inspector


@contextmanager
def live_gateway(settings: Settings, spoil: Callable[[BatchReply], Any] | None = None) -> Iterator[str]:
    """Serve on a free port during the block; yield the address. ``spoil`` may change the consumer's replies."""
    config = uvicorn.Config(create_app(settings), host="127.0.0.1", port=0, log_level="error", lifespan="on")
    server = uvicorn.Server(config)
    ready = threading.Event()

    async def serve() -> None:
        consumer = Consumer(settings.redis_url, spoil)
        await consumer.start()
        ready.set()
        try:
            await server.serve()
        finally:
            await consumer.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(30)
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


@contextmanager
def live_gateway_and_inspector(settings: Settings) -> Iterator[str]:
    """Run the worker's real inspector of datasets too."""
    inspector = Inspector(DatasetFiles(settings.data_root), WorkerSettings(data_root=settings.data_root), Stop())
    inspector.start()
    try:
        with live_gateway(settings) as address:
            yield address
    finally:
        inspector.stop()
