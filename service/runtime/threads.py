"""Run blocking functions in thread pools, and cancel tasks."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

_IO_THREADS = 8
_UPLOAD_THREADS = 4
_CANCEL_AGAIN_S = 0.2

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
