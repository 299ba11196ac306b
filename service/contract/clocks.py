"""What is deleted by its age stays while the system's clock may be wrong."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

# what an NTP client corrects slowly is no jump
JUMP_S = 10.0
WAIT_S = 3600.0


class ClockWatch:
    """A watch for changes of the system's clock, which it compares with the monotonic clock at each call.

    A clock that is set forward and soon set right again makes nothing old; one that stays there is taken for right.

    Args:
        wall, monotonic: the clocks, in seconds.
    """

    def __init__(
        self, wall: Callable[[], float] | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        wall = wall or _unix_time
        self._wall, self._monotonic = wall, monotonic
        self._offset_s = wall() - monotonic()
        self._set_at = float("-inf")
        self._lock = threading.Lock()

    def was_set(self) -> bool:
        """Return whether the clock was set by more than JUMP_S within the last WAIT_S."""
        with self._lock:
            now = self._monotonic()
            offset_s = self._wall() - now
            if abs(jump_s := offset_s - self._offset_s) > JUMP_S:
                log.warning("the clock was set by %+.0f s: nothing is deleted by age for %.0f s", jump_s, WAIT_S)
                self._set_at = now
            self._offset_s = offset_s
            return now - self._set_at < WAIT_S


def _unix_time() -> float:
    return time.time()
