"""A cache of drawn priors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock


class PictureCache:
    """A least-recently-used cache of encoded pictures. Thread-safe.

    Args:
        limit: bytes to keep at most.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = Lock()
        self.size = 0

    def get(self, key: Hashable) -> bytes | None:
        """Return a picture; None where it is not cached."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: Hashable, picture: bytes) -> None:
        """Add a picture; evict those not used for the longest time."""
        with self._lock:
            self.size += len(picture) - len(self._kept.pop(key, b""))
            self._kept[key] = picture
            while self.size > self._limit:
                self.size -= len(self._kept.popitem(last=False)[1])
