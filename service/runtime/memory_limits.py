"""Limits on what requests hold at once: bytes, decoded pixels, and processes that decode videos."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock

from service.contract.errors import QueueFull

from .metrics import Metrics

_RETRY_S = 2.0


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
