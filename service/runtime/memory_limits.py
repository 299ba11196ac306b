"""Bounds on what requests may hold at once: bytes in memory, and processes that decode videos."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from service.contract.errors import QueueFull

from .metrics import Metrics

_RETRY_S = 2.0


class ByteBudget:
    """So many bytes may be held at a time.

    Args:
        limit: in bytes.
    """

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self._limit = limit
        self._metrics = metrics
        self.held = 0

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Hold some bytes while the block runs.

        Raises:
            QueueFull: too many are held by others.
        """
        if self.held + size > self._limit:
            self._metrics.rejected.inc()
            raise QueueFull(
                f"requests of {self.held} bytes are being served and {self._limit} may; try again in a moment",
                retry_after_s=_RETRY_S,
            )
        self.held += size
        try:
            yield
        finally:
            self.held -= size


class Places:
    """So many may be taken at a time.

    Args:
        count: of them.
    """

    def __init__(self, count: int, metrics: Metrics) -> None:
        self._count = count
        self._metrics = metrics
        self.taken = 0

    @contextmanager
    def take(self) -> Iterator[None]:
        """Take one while the block runs.

        Raises:
            QueueFull: others have them all.
        """
        if self.taken >= self._count:
            self._metrics.rejected.inc()
            raise QueueFull(
                f"{self.taken} videos are being decoded and no more may; try again in a moment, or send it with "
                "'Prefer: respond-async' to have it worked on in the background",
                retry_after_s=_RETRY_S,
            )
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1
