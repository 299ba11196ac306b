"""Run blocking functions in thread pools, cancel tasks, and limit what requests hold at once."""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
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
_SHARE_OF_KEY = 0.75

Result = TypeVar("Result")


class Pool(ThreadPoolExecutor):
    """A thread pool; await a call of it to run a function in one of its threads.

    The context of the caller goes along, so that what is logged in a thread carries the id of the request.
    """

    async def __call__(self, function: Callable[..., Result], *arguments: Any, **keywords: Any) -> Result:
        in_context = partial(contextvars.copy_context().run, function, *arguments, **keywords)
        return await asyncio.get_running_loop().run_in_executor(self, in_context)


class Threads:
    """Thread pools, one for each kind of work, so that slow work of one kind does not delay the others.

    Attributes:
        io: reads or writes files or Redis.
        upload: writes or checks a part of an upload, which may be gigabytes.
        video: waits for the next frame of a video; that may take minutes where few are taken.
        decode: decodes, draws on or encodes pictures.
        draw: draws priors; one thread, so that it does not slow down estimates.
        send: sends batches; one thread, as the sender's connections are not shared and batches leave in order.
    """

    def __init__(self, decoding: int, videos: int) -> None:
        self.io = Pool(_IO_THREADS, "io")
        self.upload = Pool(_UPLOAD_THREADS, "upload")
        self.video = Pool(videos, "video")
        self.decode = Pool(decoding, "decode")
        self.draw = Pool(1, "draw")
        self.send = Pool(1, "send")

    def shutdown(self) -> None:
        """Drop what has not started; do not wait for what has."""
        for pool in (self.io, self.upload, self.video, self.decode, self.draw, self.send):
            pool.shutdown(wait=False, cancel_futures=True)


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


class RequestLimit:
    """Cap what the requests being served hold together, such as bytes in memory.

    Requests of one API key hold at most three quarters together, so that one key does not keep out all others; a single
    request may hold more.

    Args:
        problem: the message when it is reached, with the places {held} and {limit}.
    """

    def __init__(self, limit: int, metrics: Metrics, problem: str) -> None:
        self._limit = limit
        self._metrics = metrics
        self._problem = problem
        self._of_keys: Counter[str] = Counter()
        self.held = 0

    @contextmanager
    def hold(self, amount: int, key_id: str | None) -> Iterator[None]:
        """Hold an amount while the block runs. Raises QueueFull at once if it does not fit.

        Args:
            key_id: of the API key that the request came with, if any.
        """
        own, most = (self._of_keys[key_id], int(_SHARE_OF_KEY * self._limit)) if key_id else (0, self._limit)
        if self.held + amount > self._limit or (own and own + amount > most):
            self._metrics.rejected.inc()
            detail = self._problem.format(held=self.held, limit=self._limit)
            if own:
                detail += f" (API key {key_id} has {own} of these, and may have {most} at once)"
            raise QueueFull(detail, retry_after_s=_RETRY_S)
        self.held += amount
        if key_id:
            self._of_keys[key_id] += amount
        try:
            yield
        finally:
            self.held -= amount
            if key_id:
                self._of_keys[key_id] -= amount
                self._of_keys += Counter()  # drops zeros


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
