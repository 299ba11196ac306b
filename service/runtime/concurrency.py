"""Run blocking functions in thread pools, cancel tasks, and limit what requests hold at once."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Condition, Lock
from typing import Any, TypeVar

from service.contract.errors import QueueFull

from .metrics import Metrics

_IO_THREADS = 8
_UPLOAD_THREADS = 4
_CANCEL_AGAIN_S = 0.2
_RETRY_S = 2.0

Result = TypeVar("Result")


class Threads:
    """Thread pools, one for each kind of work, so that slow work of one kind does not delay the others.

    The context of the caller goes along, so that what is logged in a thread carries the id of the request.

    Args:
        decoding: threads that decode and draw pictures.
        videos: threads that wait for the next frame of a video; that may take minutes where few are taken.
    """

    def __init__(self, decoding: int, videos: int) -> None:
        self._io = ThreadPoolExecutor(_IO_THREADS, "io")
        self._uploads = ThreadPoolExecutor(_UPLOAD_THREADS, "upload")
        self._videos = ThreadPoolExecutor(videos, "video")
        self._decoding = ThreadPoolExecutor(decoding, "decode")
        # one thread: drawing priors must not slow down estimates
        self._drawing = ThreadPoolExecutor(1, "draw")
        # one thread: the sender's connections are not shared, and batches leave in order
        self._sending = ThreadPoolExecutor(1, "send")

    async def io(self, function: Callable[..., Result], *arguments: Any, **keywords: Any) -> Result:
        """Read or write files or Redis."""
        return await _run(self._io, partial(function, *arguments, **keywords))

    async def upload(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Write or check a part of an upload, which may be gigabytes."""
        return await _run(self._uploads, function, *arguments)

    async def video(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Read frames of a video."""
        return await _run(self._videos, function, *arguments)

    async def decode(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Decode, draw on or encode pictures."""
        return await _run(self._decoding, function, *arguments)

    async def draw(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Draw a prior."""
        return await _run(self._drawing, function, *arguments)

    async def send(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Send a batch to the queue."""
        return await _run(self._sending, function, *arguments)

    def shutdown(self) -> None:
        """Drop what has not started; do not wait for what has."""
        for pool in (self._io, self._uploads, self._videos, self._decoding, self._drawing, self._sending):
            pool.shutdown(wait=False, cancel_futures=True)


async def _run(pool: ThreadPoolExecutor, function: Callable[..., Result], *arguments: Any) -> Result:
    in_context = partial(contextvars.copy_context().run, function)
    return await asyncio.get_running_loop().run_in_executor(pool, in_context, *arguments)


async def cancel_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have ended, whatever their result."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        # repeated: before Python 3.12 asyncio.wait_for, which redis-py awaits, can swallow a cancellation
        done, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_S)
        for task in done:
            if not task.cancelled():
                task.exception()  # marks it as retrieved, or asyncio logs a warning


class ByteBudget:
    """Cap the bytes held in memory by requests."""

    def __init__(self, limit_bytes: int, metrics: Metrics) -> None:
        self._limit_bytes = limit_bytes
        self._metrics = metrics
        self.held = 0

    @contextmanager
    def hold(self, size_bytes: int) -> Iterator[None]:
        """Hold some bytes while the block runs. Raises QueueFull at once if they do not fit."""
        if self.held + size_bytes > self._limit_bytes:
            self._metrics.rejected.inc()
            raise QueueFull(
                f"the requests being served hold {self.held} of {self._limit_bytes} bytes; try again in a moment",
                retry_after_s=_RETRY_S,
            )
        self.held += size_bytes
        try:
            yield
        finally:
            self.held -= size_bytes


class VideoSlots:
    """Cap the number of videos decoded at once."""

    def __init__(self, count: int, metrics: Metrics) -> None:
        self._count = count
        self._metrics = metrics
        self.taken = 0

    @contextmanager
    def take(self) -> Iterator[None]:
        """Take a slot while the block runs. Raises QueueFull at once if none is free."""
        if self.taken >= self._count:
            self._metrics.rejected.inc()
            raise QueueFull(
                f"{self.taken} videos are being decoded, the most allowed; try again in a moment, or send the video "
                "with 'Prefer: respond-async' to have it estimated in the background",
                retry_after_s=_RETRY_S,
            )
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


class DecodedPixelLimit:
    """Cap the pixels held decoded at once, as a file of few bytes may decode to many pixels. Thread-safe."""

    def __init__(self) -> None:
        self.held = 0
        self._freed = Condition()
        self._turn = Lock()  # waiters are served in order, so small pictures cannot starve a large one

    @contextmanager
    def hold(self, pixels: int, limit: int) -> Iterator[None]:
        """Hold some pixels while the block runs; first wait until the sum is within `limit`, or nothing is held."""
        with self._turn, self._freed:
            self._freed.wait_for(lambda: not self.held or self.held + pixels <= limit)
            self.held += pixels
        try:
            yield
        finally:
            with self._freed:
                self.held -= pixels
                self._freed.notify_all()
