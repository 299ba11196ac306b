"""A bound on the pixels that are decoded at once: pictures of few bytes may be of many pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock


class PixelRoom:
    """So many pixels may be held decoded at a time; threads wait for theirs, in turn."""

    def __init__(self) -> None:
        self.held = 0
        self._freed = Condition()
        self._turn = Lock()  # who waits lets nobody pass, or small pictures would hold up a large one for ever

    @contextmanager
    def hold(self, pixels: int, limit: int) -> Iterator[None]:
        """Wait until no more than a limit would be held, and hold some pixels while the block runs.

        More than the limit are held when nobody else holds any.
        """
        with self._turn, self._freed:
            self._freed.wait_for(lambda: not self.held or self.held + pixels <= limit)
            self.held += pixels
        try:
            yield
        finally:
            with self._freed:
                self.held -= pixels
                self._freed.notify_all()
