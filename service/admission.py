"""A bound on the bytes of the requests that are held in memory at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .contract.errors import QueueFull
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
