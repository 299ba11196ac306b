"""The time by Redis' clock, by which workers on several machines agree when messages are delivered again."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from kombu.transport import redis as kombu_redis

from .heartbeat import PeriodicThread
from .redis_retries import OUTAGES

_EVERY_S = 5.0


class RedisClock(PeriodicThread):
    """A thread that compares Redis' clock with this machine's monotonic one every few seconds.

    Until Redis answers for the first time it is this machine's wall clock.
    """

    def __init__(self, client: Any) -> None:
        super().__init__("clock", _EVERY_S)
        self._redis = client
        self._offset_s = time.time() - time.monotonic()
        with suppress(*OUTAGES):
            self.run_once()

    def now(self) -> float:
        """Return the seconds since 1970."""
        return time.monotonic() + self._offset_s

    def run_once(self) -> None:
        """Compare the clocks; the answer was made halfway between asking and receiving it."""
        asked = time.monotonic()
        seconds, microseconds = self._redis.time()
        self._offset_s = seconds + microseconds / 1e6 - (asked + time.monotonic()) / 2

    def use_for_messages(self) -> None:
        """Let kombu give unacknowledged messages their times by this clock, and find those that are too old by it."""
        setattr(kombu_redis, "time", self.now)  # noqa: B010 - it imported the function by its name
