"""Ids that sort by time of creation."""

from __future__ import annotations

import secrets
import threading
import time

_TIME_DIGITS = 15
_TICKS_PER_MS = 4096

_last = 0
_lock = threading.Lock()


def time_ordered_id(digits: int) -> str:
    """Return hex digits that sort by time of creation, to a quarter of a microsecond; within a process always.

    Twelve digits are milliseconds since 1970 and three their fraction, as in UUID version 7 with increased clock
    precision (RFC 9562, 6.2, method 3); the rest is random. If the clock stops or goes back, the time counts on.

    Args:
        digits: at least 22, of which 7 are random.
    """
    global _last
    if digits < 22:
        raise ValueError(f"{digits} digits have too few random ones; use at least 22")
    with _lock:
        _last = max(_last + 1, time.time_ns() * _TICKS_PER_MS // 1_000_000)
        ticks = _last
    num_random = digits - _TIME_DIGITS
    return f"{ticks:0{_TIME_DIGITS}x}{secrets.randbits(4 * num_random):0{num_random}x}"
